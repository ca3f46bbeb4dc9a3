// The small parts of a Krylov solve on CUDA: Givens step and triangular solve, a thread a sample around the cores of
// csrc/math/krylov.h, and the combination of the basis, a thread an entry.
#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include "../krylov_checks.h"
#include "../math/krylov.h"
#include "stream.h"

namespace soatfast {
namespace {

constexpr int kThreads = 128;

unsigned blocks_for(int64_t count) { return static_cast<unsigned>((count + kThreads - 1) / kThreads); }

template <typename T>
T* data(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

template <typename T>
__global__ void givens_kernel(
    int64_t rows, int64_t m, int64_t column, int64_t count, T rcond,
    T* triangle, T* rotations, T* rhs,     // [m, m, B], [m, 2, B], [m + 1, B]
    int32_t *iterations, int32_t* status,  // [B]
    const T* hessenberg, const T* norms, const T* target, T* residual) {
  const int64_t r = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (r >= rows) return;
  const KrylovState<T> state{triangle + r, rotations + r, rhs + r, iterations + r, status + r, rows};
  for (int64_t c = 0; c < count; ++c) {
    const int64_t j = column + c;
    givens_lanes<T, 1>(
        m, j, state, hessenberg + j * (m + 1) * rows + r, norms + j * rows + r, target + r, rcond,
        residual + c * rows + r);
  }
}

template <typename T>
__global__ void solve_kernel(
    int64_t rows, int64_t m, const T* triangle, const T* rhs, const int32_t* iterations, T* y) {
  const int64_t r = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (r >= rows) return;
  back_substitution_lanes<T, 1>(m, KrylovTriangle<T>{triangle + r, rhs + r, iterations + r, rows}, y + r);
}

template <typename T>
__global__ void combine_kernel(
    int64_t size, int64_t rows, int64_t m, const T* __restrict__ basis, const T* __restrict__ y,
    const T* __restrict__ x0, T* __restrict__ x) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x, row = blockIdx.y;
  if (i >= size) return;
  const T *v = basis + row * (m + 1) * size + i, *c = y + row;
  T sum = x0 == nullptr ? T(0) : x0[row * size + i];
  for (int64_t k = 0; k < m; ++k) {
    const T factor = c[k * rows];
    if (factor != T(0)) sum += factor * v[k * size];  // the same for the whole block
  }
  x[row * size + i] = sum;
}

Tensor givens_step(
    const Tensor& triangle, const Tensor& rotations, const Tensor& rhs, const Tensor& iterations, const Tensor& status,
    const Tensor& hessenberg_in, const Tensor& norms_in, const Tensor& target_in, int64_t column, int64_t count,
    double rcond) {
  const GivensCall call = check_givens(
      triangle, rotations, rhs, iterations, status, hessenberg_in, norms_in, target_in, column, count);
  const int64_t rows = triangle.size(2), m = triangle.size(1);
  Tensor residual = torch::stable::new_empty(triangle, {count, rows});
  if (rows == 0) return residual;
  const torch::stable::accelerator::DeviceGuard guard(triangle.get_device_index());
  const auto run = [&](auto number) {
    using T = decltype(number);
    givens_kernel<T><<<blocks_for(rows), kThreads, 0, stream_of(triangle)>>>(
        rows, m, column, count, static_cast<T>(rcond), data<T>(triangle), data<T>(rotations), data<T>(rhs),
        data<int32_t>(iterations), data<int32_t>(status), data<T>(call.hessenberg), data<T>(call.norms),
        data<T>(call.target), data<T>(residual));
  };
  triangle.scalar_type() == ScalarType::Double ? run(double{}) : run(float{});
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return residual;
}

// iterations is not looked at on the host: it must lie in 0..m
Tensor triangular_solve(const Tensor& triangle_in, const Tensor& rhs_in, const Tensor& iterations_in) {
  const TriangleCall call = check_triangle(triangle_in, rhs_in, iterations_in);
  const int64_t rows = call.triangle.size(2), m = call.triangle.size(1);
  Tensor y = torch::stable::new_empty(call.triangle, {m, rows});
  if (rows == 0 || m == 0) return y;
  const torch::stable::accelerator::DeviceGuard guard(call.triangle.get_device_index());
  const auto run = [&](auto number) {
    using T = decltype(number);
    solve_kernel<T><<<blocks_for(rows), kThreads, 0, stream_of(call.triangle)>>>(
        rows, m, data<T>(call.triangle), data<T>(call.rhs), data<int32_t>(call.iterations), data<T>(y));
  };
  call.triangle.scalar_type() == ScalarType::Double ? run(double{}) : run(float{});
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return y;
}

Tensor krylov_combine(const Tensor& basis_in, const Tensor& y_in, std::optional<Tensor> x0_in) {
  const Tensor basis = dense(basis_in);
  check_state(basis, "basis");
  const int64_t rows = basis.size(0), m = basis.size(1) - 1, size = basis.size(2);
  STD_TORCH_CHECK(rows <= 65535, "krylov_combine: at most 65535 samples on CUDA, got ", rows);
  const Tensor y = dense_like(y_in, basis, rows * m, "y");
  std::optional<Tensor> x0;
  if (x0_in.has_value()) x0 = dense_like(*x0_in, basis, rows * size, "x0");
  Tensor x = torch::stable::new_empty(basis, {rows, size});
  if (rows == 0 || size == 0) return x;
  const torch::stable::accelerator::DeviceGuard guard(basis.get_device_index());
  const auto run = [&](auto number) {
    using T = decltype(number);
    combine_kernel<T><<<dim3(blocks_for(size), static_cast<unsigned>(rows)), kThreads, 0, stream_of(basis)>>>(
        size, rows, m, data<T>(basis), data<T>(y), x0.has_value() ? data<T>(*x0) : nullptr, data<T>(x));
  };
  basis.scalar_type() == ScalarType::Double ? run(double{}) : run(float{});
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return x;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(soatfast, CUDA, m) {
  m.impl("givens_step", TORCH_BOX(&givens_step));
  m.impl("triangular_solve", TORCH_BOX(&triangular_solve));
  m.impl("krylov_combine", TORCH_BOX(&krylov_combine));
}

}  // namespace soatfast
