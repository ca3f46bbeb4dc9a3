#include "../krylov_checks.h"
#include "rows.h"

namespace soatfast {
namespace {

// basis [B, m + 1, D], hessenberg [m, m + 1, B], norms [m, B], all updated; w [B, D], status [B]; base, x, probe [B, D]
void arnoldi_step(
    const Tensor& basis, const Tensor& hessenberg, const Tensor& norms, const Tensor& w_in, const Tensor& status,
    int64_t column, std::optional<Tensor> base, std::optional<Tensor> x, std::optional<Tensor> probe, double step) {
  const ArnoldiCall call = check_arnoldi(basis, hessenberg, norms, w_in, status, column, base, x, probe);
  const int64_t rows = basis.size(0), blocks = basis.size(1), size = basis.size(2);
  const int64_t bytes = dtype_of(basis) == DType::kDouble ? 8 : 4;
  const cpu::ArnoldiStep args{
      dtype_of(basis),
      size,
      blocks,
      rows,
      column,
      basis.mutable_data_ptr(),
      call.w.const_data_ptr(),
      static_cast<const int32_t*>(status.const_data_ptr()),
      static_cast<char*>(hessenberg.mutable_data_ptr()) + column * blocks * rows * bytes,
      static_cast<char*>(norms.mutable_data_ptr()) + column * rows * bytes,
      step,
      call.base.has_value() ? call.base->const_data_ptr() : nullptr,
      call.x.has_value() ? call.x->const_data_ptr() : nullptr,
      call.x.has_value() ? probe->mutable_data_ptr() : nullptr};
  for_rows(rows, size, 2 * blocks, cpu::kernels().arnoldi_step, args);
}

// basis [B, m + 1, D] and probe [B, D] updated; r, x [B, D] -> ||r|| [B]
Tensor arnoldi_start(
    const Tensor& basis, const Tensor& r_in, std::optional<Tensor> x_in, std::optional<Tensor> probe, double step) {
  check_state(basis, "basis");
  const int64_t rows = basis.size(0), size = basis.size(2);
  const Tensor r = dense_like(r_in, basis, rows * size, "r");
  const std::optional<Tensor> x = check_probe(basis, x_in, probe);
  Tensor norm = torch::stable::new_empty(basis, {rows});
  const cpu::ArnoldiStep args{
      dtype_of(basis),
      size,
      basis.size(1),
      rows,
      -1,
      basis.mutable_data_ptr(),
      r.const_data_ptr(),
      nullptr,
      nullptr,
      norm.mutable_data_ptr(),
      step,
      nullptr,
      x.has_value() ? x->const_data_ptr() : nullptr,
      x.has_value() ? probe->mutable_data_ptr() : nullptr};
  for_rows(rows, size, cpu::kernels().arnoldi_step, args);
  return norm;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(soatfast, CPU, m) {
  m.impl("arnoldi_step", TORCH_BOX(&arnoldi_step));
  m.impl("arnoldi_start", TORCH_BOX(&arnoldi_start));
}

}  // namespace soatfast
