// What every native op hands to its kernels, on the CPU and on CUDA. No functions: the units of the CPU's row kernels
// include this too, see cpu/rows.h.
#pragma once

#include <cstdint>

namespace soatfast {

enum class DType { kFloat, kDouble, kBFloat16, kHalf };

// A number, or a tensor of one per sample (or one for all).
struct PerSample {
  double number;
  const void* tensor;  // accumulation dtype, or null
  int64_t count;       // 1 or B
};

}  // namespace soatfast
