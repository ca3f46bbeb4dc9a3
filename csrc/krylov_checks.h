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

inline void check_columns(int64_t column, int64_t count, int64_t m) {
  STD_TORCH_CHECK(column >= 0 && column < m, "column must lie in 0..", m - 1, ", got ", column);
  STD_TORCH_CHECK(count >= 1 && column + count <= m, "count must lie in 1..", m - column, ", got ", count);
}

// x, dense, where there is one; probe is written and needs one.
inline std::optional<Tensor> check_probe(
    const Tensor& basis, const std::optional<Tensor>& x, const std::optional<Tensor>& probe) {
  STD_TORCH_CHECK(x.has_value() == probe.has_value(), "x and probe: expected both or neither");
  if (!x.has_value()) return std::nullopt;
  const int64_t rows = basis.size(0), size = basis.size(2);
  check_dense(*probe, basis, basis.scalar_type(), "probe");
  STD_TORCH_CHECK(probe->numel() == rows * size, "probe: expected shape (", rows, ", ", size, ")");
  return dense_like(*x, basis, rows * size, "x");
}

// What arnoldi_step reads, dense.
struct ArnoldiCall {
  Tensor w;
  std::optional<Tensor> base, x;
};

inline ArnoldiCall check_arnoldi(
    const Tensor& basis, const Tensor& hessenberg, const Tensor& norms, const Tensor& w, const Tensor& status,
    int64_t column, const std::optional<Tensor>& base, const std::optional<Tensor>& x,
    const std::optional<Tensor>& probe) {
  check_state(basis, "basis");
  const int64_t rows = basis.size(0), m = basis.size(1) - 1, size = basis.size(2);
  check_dense(hessenberg, basis, basis.scalar_type(), "hessenberg");
  check_dense(norms, basis, basis.scalar_type(), "norms");
  STD_TORCH_CHECK(
      hessenberg.numel() == m * (m + 1) * rows, "hessenberg: expected shape (", m, ", ", m + 1, ", ", rows, ")");
  STD_TORCH_CHECK(norms.numel() == m * rows, "norms: expected shape (", m, ", ", rows, ")");
  check_numbers(status, basis, rows, "status");
  check_columns(column, 1, m);
  ArnoldiCall call{dense_like(w, basis, rows * size, "w"), std::nullopt, check_probe(basis, x, probe)};
  if (base.has_value()) call.base = dense_like(*base, basis, rows * size, "base");
  return call;
}

inline void check_square(const Tensor& triangle) {
  check_state(triangle, "triangle");
  STD_TORCH_CHECK(triangle.size(0) == triangle.size(1), "triangle: expected shape (m, m, B)");
}

// Host memory only: the kernels read and write where these numbers point.
inline void check_iterations(const Tensor& iterations, int64_t rows, int64_t m) {
  const auto* counts = static_cast<const int32_t*>(iterations.const_data_ptr());
  for (int64_t r = 0; r < rows; ++r) {
    STD_TORCH_CHECK(counts[r] >= 0 && counts[r] <= m, "iterations must lie in 0..", m, ", got ", counts[r]);
  }
}

// What givens_step reads, dense.
struct GivensCall {
  Tensor hessenberg, norms, target;
};

inline GivensCall check_givens(
    const Tensor& triangle, const Tensor& rotations, const Tensor& rhs, const Tensor& iterations, const Tensor& status,
    const Tensor& hessenberg, const Tensor& norms, const Tensor& target, int64_t column, int64_t count) {
  check_square(triangle);
  const int64_t rows = triangle.size(2), m = triangle.size(1);
  check_dense(rotations, triangle, triangle.scalar_type(), "rotations");
  check_dense(rhs, triangle, triangle.scalar_type(), "rhs");
  STD_TORCH_CHECK(rotations.numel() == 2 * rows * m, "rotations: expected shape (", m, ", 2, ", rows, ")");
  STD_TORCH_CHECK(rhs.numel() == rows * (m + 1), "rhs: expected shape (", m + 1, ", ", rows, ")");
  check_numbers(iterations, triangle, rows, "iterations");
  check_numbers(status, triangle, rows, "status");
  check_columns(column, count, m);
  return {
      dense_like(hessenberg, triangle, rows * m * (m + 1), "hessenberg"), dense_like(norms, triangle, rows * m, "norms"),
      dense_like(target, triangle, rows, "target")};
}

// What triangular_solve reads, dense.
struct TriangleCall {
  Tensor triangle, rhs, iterations;
};

inline TriangleCall check_triangle(const Tensor& triangle_in, const Tensor& rhs, const Tensor& iterations_in) {
  const Tensor triangle = dense(triangle_in), iterations = dense(iterations_in);
  check_square(triangle);
  const int64_t rows = triangle.size(2), m = triangle.size(1);
  check_numbers(iterations, triangle, rows, "iterations");
  return {triangle, dense_like(rhs, triangle, rows * (m + 1), "rhs"), iterations};
}

// kernel(args, begin, end, scratch) over samples that lie side by side, `work` operations each: threads share cache
// lines of 16 numbers, never one.
template <typename Args>
void for_packs(int64_t rows, int64_t work, void (*kernel)(const Args&, int64_t, int64_t, void*), const Args& args) {
  constexpr int64_t kPack = 16, kGrain = 65536;  // operations worth a thread
  if (rows == 0 || work == 0) return;
  const int64_t packs = (rows + kPack - 1) / kPack;
  torch::stable::parallel_for(0, packs, std::max<int64_t>(1, kGrain / (work * kPack)), [&](int64_t begin, int64_t end) {
    kernel(args, begin * kPack, std::min(end * kPack, rows), nullptr);
  });
}

}  // namespace soatfast
