// The checks that the Krylov ops share, on the CPU and on CUDA.
#pragma once

#include "common.h"

namespace soatfast {

// A dense tensor that an op updates in place, or reads at one place a sample.
inline void check_dense(const Tensor& t, const Tensor& like, ScalarType dtype, const char* name) {
  STD_TORCH_CHECK(t.scalar_type() == dtype, name, ": expected the dtype of the state (int32 for whole numbers)");
  STD_TORCH_CHECK(t.is_cpu() == like.is_cpu(), name, ": expected the device of the other tensors");
  STD_TORCH_CHECK(t.is_contiguous(), name, ": expected a dense tensor, which is updated in place");
}

inline void check_state(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(
      t.scalar_type() == ScalarType::Float || t.scalar_type() == ScalarType::Double, name,
      ": expected float32 or float64");
  STD_TORCH_CHECK(t.dim() == 3, name, ": expected 3 dimensions, got ", t.dim());
  STD_TORCH_CHECK(t.is_contiguous(), name, ": expected a dense tensor, which is updated in place");
}

inline void check_numbers(const Tensor& t, const Tensor& like, int64_t rows, const char* name) {
  check_dense(t, like, ScalarType::Int, name);
  STD_TORCH_CHECK(t.dim() == 1 && t.size(0) == rows, name, ": expected shape (", rows, ",)");
}

// `t` as a dense tensor of like's dtype and device with `numel` entries.
inline Tensor dense_like(const Tensor& t, const Tensor& like, int64_t numel, const char* name) {
  STD_TORCH_CHECK(t.numel() == numel, name, ": expected ", numel, " entries, got ", t.numel());
  STD_TORCH_CHECK(t.scalar_type() == like.scalar_type(), name, ": expected the dtype of the state");
  STD_TORCH_CHECK(t.is_cpu() == like.is_cpu(), name, ": expected the device of the other tensors");
  return dense(t);
}

inline void check_column(int64_t column, int64_t m) {
  STD_TORCH_CHECK(column >= 0 && column < m, "column must lie in 0..", m - 1, ", got ", column);
}

inline void check_square(const Tensor& triangle) {
  check_state(triangle, "triangle");
  STD_TORCH_CHECK(triangle.size(2) == triangle.size(1), "triangle: expected square matrices");
}

// What givens_step reads, dense.
struct GivensCall {
  Tensor h, norm, target;
};

inline GivensCall check_givens(
    const Tensor& triangle, const Tensor& rotations, const Tensor& rhs, const Tensor& iterations, const Tensor& status,
    const Tensor& h, const Tensor& norm, const Tensor& target, int64_t column) {
  check_square(triangle);
  const int64_t rows = triangle.size(0), m = triangle.size(1);
  check_dense(rotations, triangle, triangle.scalar_type(), "rotations");
  check_dense(rhs, triangle, triangle.scalar_type(), "rhs");
  STD_TORCH_CHECK(rotations.numel() == 2 * rows * m, "rotations: expected shape (", rows, ", ", m, ", 2)");
  STD_TORCH_CHECK(rhs.numel() == rows * (m + 1), "rhs: expected shape (", rows, ", ", m + 1, ")");
  check_numbers(iterations, triangle, rows, "iterations");
  check_numbers(status, triangle, rows, "status");
  check_column(column, m);
  return {
      dense_like(h, triangle, rows * (m + 1), "h"), dense_like(norm, triangle, rows, "norm"),
      dense_like(target, triangle, rows, "target")};
}

}  // namespace soatfast
