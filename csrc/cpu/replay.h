// The checks that the replay ops share.
#pragma once

#include "../common.h"
#include "rows.h"

namespace soatfast {

inline cpu::Kept kept_of(const Tensor& memory) {
  switch (memory.scalar_type()) {
    case ScalarType::Float: return cpu::Kept::kFloat;
    case ScalarType::BFloat16: return cpu::Kept::kBFloat16;
    case ScalarType::Char: return cpu::Kept::kInt8;
    default: STD_TORCH_CHECK(false, "memory: expected float32, bfloat16 or int8");
  }
}

// memory (N, D), scale (N,) and index (B,) for x (B, D). Nothing is copied: the memory is updated in place. A row
// outside the memory would be another tensor's bytes, so every index is looked at before anything is written.
inline cpu::Remembered check_memory(
    const Tensor& memory, const std::optional<Tensor>& scale, const Tensor& index, const Tensor& x) {
  STD_TORCH_CHECK(
      x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::Double,
      "x: expected a float32 or float64 batch");
  const cpu::Kept kept = kept_of(memory);
  STD_TORCH_CHECK(
      memory.dim() == 2 && memory.size(1) == x.size(1), "memory: expected shape (N, ", x.size(1), ")");
  STD_TORCH_CHECK(memory.is_contiguous() && memory.is_cpu(), "memory: expected a dense tensor on the CPU");
  STD_TORCH_CHECK(
      scale.has_value() == (kept == cpu::Kept::kInt8), "scale: expected with an int8 memory and with no other");
  if (scale.has_value()) {
    STD_TORCH_CHECK(
        scale->dim() == 1 && scale->size(0) == memory.size(0) && scale->scalar_type() == ScalarType::Float,
        "scale: expected float32 of shape (", memory.size(0), ",)");
    STD_TORCH_CHECK(scale->is_contiguous() && scale->is_cpu(), "scale: expected a dense tensor on the CPU");
  }
  STD_TORCH_CHECK(
      index.scalar_type() == ScalarType::Long && index.dim() == 1 && index.size(0) == x.size(0),
      "index: expected int64 of shape (", x.size(0), ",)");
  STD_TORCH_CHECK(index.is_contiguous() && index.is_cpu(), "index: expected a dense tensor on the CPU");
  const auto* rows = static_cast<const int64_t*>(index.const_data_ptr());
  for (int64_t i = 0; i < index.size(0); ++i) {
    STD_TORCH_CHECK(
        rows[i] >= 0 && rows[i] < memory.size(0), "index[", i, "] is ", rows[i], ", outside the memory's ",
        memory.size(0), " rows");
  }
  return {kept, rows};
}

}  // namespace soatfast
