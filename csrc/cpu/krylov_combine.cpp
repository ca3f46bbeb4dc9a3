#include "../krylov_checks.h"
#include "rows.h"

namespace soatfast {
namespace {

// basis [B, m + 1, D], y [m, B], x0 [B, D] -> x [B, D]
Tensor krylov_combine(const Tensor& basis_in, const Tensor& y_in, std::optional<Tensor> x0_in) {
  const Tensor basis = dense(basis_in);
  check_state(basis, "basis");
  const int64_t rows = basis.size(0), blocks = basis.size(1), size = basis.size(2);
  const Tensor y = dense_like(y_in, basis, rows * (blocks - 1), "y");
  std::optional<Tensor> x0;
  if (x0_in.has_value()) x0 = dense_like(*x0_in, basis, rows * size, "x0");
  Tensor x = torch::stable::new_empty(basis, {rows, size});
  const cpu::KrylovCombine args{
      dtype_of(basis),
      size,
      blocks,
      rows,
      basis.const_data_ptr(),
      y.const_data_ptr(),
      x0.has_value() ? x0->const_data_ptr() : nullptr,
      x.mutable_data_ptr()};
  for_rows(rows, size, cpu::kernels().krylov_combine, args);
  return x;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(soatfast, CPU, m) { m.impl("krylov_combine", TORCH_BOX(&krylov_combine)); }

}  // namespace soatfast
