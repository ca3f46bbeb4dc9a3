#include "../krylov_checks.h"
#include "rows.h"

namespace soatfast {
namespace {

// triangle [m, m, B], rotations [m, 2, B], rhs [m + 1, B], iterations, status [B], all updated; hessenberg [m, m + 1, B],
// norms [m, B], target [B] -> residual [count, B]
Tensor givens_step(
    const Tensor& triangle, const Tensor& rotations, const Tensor& rhs, const Tensor& iterations, const Tensor& status,
    const Tensor& hessenberg_in, const Tensor& norms_in, const Tensor& target_in, int64_t column, int64_t count,
    double rcond) {
  const auto [hessenberg, norms, target] = check_givens(
      triangle, rotations, rhs, iterations, status, hessenberg_in, norms_in, target_in, column, count);
  const int64_t rows = triangle.size(2), m = triangle.size(1);
  check_iterations(iterations, rows, m);
  Tensor residual = torch::stable::new_empty(triangle, {count, rows});
  const cpu::GivensStep args{
      dtype_of(triangle),
      rows,
      m,
      column,
      count,
      rcond,
      triangle.mutable_data_ptr(),
      rotations.mutable_data_ptr(),
      rhs.mutable_data_ptr(),
      static_cast<int32_t*>(iterations.mutable_data_ptr()),
      static_cast<int32_t*>(status.mutable_data_ptr()),
      hessenberg.const_data_ptr(),
      norms.const_data_ptr(),
      target.const_data_ptr(),
      residual.mutable_data_ptr()};
  for_packs(rows, 8 * m * count, cpu::kernels().givens_step, args);
  return residual;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(soatfast, CPU, m) { m.impl("givens_step", TORCH_BOX(&givens_step)); }

}  // namespace soatfast
