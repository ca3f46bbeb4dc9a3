// What every native op needs: the LibTorch stable ABI, argument checks and the loop over rows.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <optional>
#include <tuple>

#include "types.h"

namespace soatfast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline DType dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return DType::kFloat;
    case ScalarType::Double: return DType::kDouble;
    case ScalarType::BFloat16: return DType::kBFloat16;
    case ScalarType::Half: return DType::kHalf;
    default: STD_TORCH_CHECK(false, "expected float32, float64, bfloat16 or float16");
  }
}

inline ScalarType accumulate_dtype(const Tensor& t) {
  return t.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline Tensor dense(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

// `t` as [rows, D] of `like`'s dtype and device, dense. Copies only what is not dense already.
inline Tensor dense_rows(const Tensor& t, const Tensor& like, int64_t rows, const char* name) {
  STD_TORCH_CHECK(t.dim() == 2, name, ": expected a (B, D) tensor, got ", t.dim(), " dimensions");
  STD_TORCH_CHECK(
      t.size(0) == rows && t.size(1) == like.size(1), name, ": expected shape (", rows, ", ", like.size(1), "), got (",
      t.size(0), ", ", t.size(1), ")");
  STD_TORCH_CHECK(t.scalar_type() == like.scalar_type(), name, ": expected the dtype of the other tensors");
  STD_TORCH_CHECK(t.is_cpu() == like.is_cpu(), name, ": expected the device of the other tensors");
  return dense(t);
}

inline Tensor dense_rows(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.dim() == 2, name, ": expected a (B, D) tensor, got ", t.dim(), " dimensions");
  return dense_rows(t, t, t.size(0), name);
}

// eps or alpha: a number, or a dense tensor of 1 or B numbers in the accumulation dtype.
inline PerSample per_sample(
    double number, const std::optional<Tensor>& tensor, const Tensor& like, const char* name) {
  if (!tensor.has_value()) return {number, nullptr, 1};
  STD_TORCH_CHECK(
      tensor->numel() == 1 || tensor->numel() == like.size(0), name, ": expected 1 or ", like.size(0), " numbers, got ",
      tensor->numel());
  STD_TORCH_CHECK(tensor->scalar_type() == accumulate_dtype(like), name, ": expected the accumulation dtype");
  STD_TORCH_CHECK(tensor->is_cpu() == like.is_cpu() && tensor->is_contiguous(), name, ": expected dense, same device");
  return {number, tensor->const_data_ptr(), tensor->numel()};
}

inline void check_order(double p, bool general) {
  STD_TORCH_CHECK(p == 1 || p == 2 || (general && p > 1) || std::isinf(p), "p: unsupported order ", p);
}

// Numbers for the calling thread, kept for its next call.
inline void* thread_scratch(int64_t size) {
  struct Buffer {
    std::unique_ptr<double[]> data;
    int64_t size = 0;
  };
  static thread_local Buffer buffer;
  if (buffer.size < size) {
    buffer.data.reset(new double[size + 8]);
    buffer.size = size;
  }
  const auto address = reinterpret_cast<uintptr_t>(buffer.data.get());
  return reinterpret_cast<void*>((address + 63) / 64 * 64);
}

// kernel(args, begin, end, scratch) over all rows, with `scratch` numbers (of at most 8 bytes) for each thread. Threads
// share rows, never a row: a sample's result does not depend on how many there are. (A batch smaller than the thread
// count leaves threads idle.)
template <typename Args>
void for_rows(
    int64_t rows, int64_t size, int64_t scratch, void (*kernel)(const Args&, int64_t, int64_t, void*),
    const Args& args) {
  constexpr int64_t kGrain = 16384;  // entries worth a thread
  if (rows == 0 || size == 0) return;
  torch::stable::parallel_for(0, rows, std::max<int64_t>(1, kGrain / size), [&](int64_t begin, int64_t end) {
    kernel(args, begin, end, thread_scratch(scratch));
  });
}

template <typename Args>
void for_rows(
    int64_t rows, int64_t size, void (*kernel)(const Args&, int64_t, int64_t, void*), const Args& args) {
  for_rows(rows, size, 2 * size, kernel, args);
}

}  // namespace soatfast
