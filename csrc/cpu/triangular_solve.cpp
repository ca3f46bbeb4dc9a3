#include "../krylov_checks.h"
#include "rows.h"

namespace soatfast {
namespace {

// triangle [m, m, B], rhs [m + 1, B], iterations [B] -> y [m, B]
Tensor triangular_solve(const Tensor& triangle_in, const Tensor& rhs_in, const Tensor& iterations_in) {
  const auto [triangle, rhs, iterations] = check_triangle(triangle_in, rhs_in, iterations_in);
  const int64_t rows = triangle.size(2), m = triangle.size(1);
  check_iterations(iterations, rows, m);
  Tensor y = torch::stable::new_empty(triangle, {m, rows});
  const cpu::TriangularSolve args{
      dtype_of(triangle), rows, m, triangle.const_data_ptr(), rhs.const_data_ptr(),
      static_cast<const int32_t*>(iterations.const_data_ptr()), y.mutable_data_ptr()};
  for_packs(rows, m * m, cpu::kernels().triangular_solve, args);
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(soatfast, CPU, m) { m.impl("triangular_solve", TORCH_BOX(&triangular_solve)); }

}  // namespace soatfast
