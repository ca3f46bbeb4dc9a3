#include "../common.h"
#include "rows.h"

namespace soatfast {
namespace {

// g0, g1, u, x [B, D] -> u [B, D], probe [B, D], rayleigh [B], norm [B]
std::tuple<Tensor, Tensor, Tensor, Tensor> power_step(
    const Tensor& g0_in, const Tensor& g1_in, const Tensor& u_in, const Tensor& x_in, double h) {
  const Tensor g0 = dense_rows(g0_in, "g0");
  const int64_t rows = g0.size(0), size = g0.size(1);
  const Tensor g1 = dense_rows(g1_in, g0, rows, "g1");
  const Tensor u = dense_rows(u_in, g0, rows, "u");
  const Tensor x = dense_rows(x_in, g0, rows, "x");
  Tensor fresh = torch::stable::empty_like(g0);
  Tensor probe = torch::stable::empty_like(g0);
  Tensor rayleigh = torch::stable::new_empty(g0, {rows}, accumulate_dtype(g0));
  Tensor norm = torch::stable::empty_like(rayleigh);
  const cpu::PowerStep args{
      dtype_of(g0),
      size,
      g0.const_data_ptr(),
      g1.const_data_ptr(),
      u.const_data_ptr(),
      x.const_data_ptr(),
      h,
      fresh.mutable_data_ptr(),
      probe.mutable_data_ptr(),
      rayleigh.mutable_data_ptr(),
      norm.mutable_data_ptr()};
  for_rows(rows, size, cpu::kernels().power_step, args);
  return {fresh, probe, rayleigh, norm};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(soatfast, CPU, m) { m.impl("power_step", TORCH_BOX(&power_step)); }

}  // namespace soatfast
