#include "../krylov_checks.h"

namespace soatfast {
namespace {

// basis [B, m + 1, D], w [B, D], status [B] -> h [B, m + 1], norm [B]; block column + 1 of basis
std::tuple<Tensor, Tensor> arnoldi_step(
    const Tensor& basis, const Tensor& w_in, const Tensor& status, int64_t column) {
  check_state(basis, "basis");
  const int64_t rows = basis.size(0), blocks = basis.size(1), size = basis.size(2);
  check_numbers(status, basis, rows, "status");
  check_column(column, blocks - 1);
  const Tensor w = dense_like(w_in, basis, rows * size, "w");
  Tensor h = torch::stable::new_empty(basis, {rows, blocks});
  Tensor norm = torch::stable::new_empty(basis, {rows});
  const cpu::ArnoldiStep args{
      dtype_of(basis),
      size,
      blocks,
      column,
      basis.mutable_data_ptr(),
      w.const_data_ptr(),
      static_cast<const int32_t*>(status.const_data_ptr()),
      h.mutable_data_ptr(),
      norm.mutable_data_ptr()};
  for_rows(rows, size, 2 * blocks, cpu::kernels().arnoldi_step, args);
  return {h, norm};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(soatfast, CPU, m) { m.impl("arnoldi_step", TORCH_BOX(&arnoldi_step)); }

}  // namespace soatfast
