#include "../krylov_checks.h"

namespace soatfast {
namespace {

// basis [B, m + 1, D], hessenberg [m, m + 1, B], norms [m, B], all updated; w [B, D], status [B]
void arnoldi_step(
    const Tensor& basis, const Tensor& hessenberg, const Tensor& norms, const Tensor& w_in, const Tensor& status,
    int64_t column) {
  const Tensor w = check_arnoldi(basis, hessenberg, norms, w_in, status, column);
  const int64_t rows = basis.size(0), blocks = basis.size(1), size = basis.size(2);
  const int64_t bytes = dtype_of(basis) == cpu::DType::kDouble ? 8 : 4;
  const cpu::ArnoldiStep args{
      dtype_of(basis),
      size,
      blocks,
      rows,
      column,
      basis.mutable_data_ptr(),
      w.const_data_ptr(),
      static_cast<const int32_t*>(status.const_data_ptr()),
      static_cast<char*>(hessenberg.mutable_data_ptr()) + column * blocks * rows * bytes,
      static_cast<char*>(norms.mutable_data_ptr()) + column * rows * bytes};
  for_rows(rows, size, 2 * blocks, cpu::kernels().arnoldi_step, args);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(soatfast, CPU, m) { m.impl("arnoldi_step", TORCH_BOX(&arnoldi_step)); }

}  // namespace soatfast
