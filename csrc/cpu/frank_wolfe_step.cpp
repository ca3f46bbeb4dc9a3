#include "../common.h"
#include "rows.h"

namespace soatfast {
namespace {

// g0, v, x [B, D], g1 [B, D] or [2B, D] -> v [B, D], probe [B, D] or [2B, D], gap [B]
std::tuple<Tensor, Tensor, Tensor> frank_wolfe_step(
    const Tensor& g0_in, const Tensor& g1_in, const Tensor& v_in, const Tensor& x_in, double p, double eps,
    std::optional<Tensor> eps_tensor, double gamma, double h, bool central, bool last, double lower, double upper,
    bool in_box) {
  check_order(p, !in_box);
  const Tensor g0 = dense_rows(g0_in, "g0");
  const int64_t rows = g0.size(0), size = g0.size(1);
  const Tensor g1 = dense_rows(g1_in, g0, central ? 2 * rows : rows, "g1");
  const Tensor v = dense_rows(v_in, g0, rows, "v");
  const Tensor x = dense_rows(x_in, g0, rows, "x");
  Tensor v_new = torch::stable::empty_like(g0);
  Tensor probe = torch::stable::new_empty(g0, {central && !last ? 2 * rows : rows, size});
  Tensor gap = torch::stable::new_empty(g0, {rows}, accumulate_dtype(g0));
  const cpu::FrankWolfeStep args{
      dtype_of(g0),
      size,
      rows,
      g0.const_data_ptr(),
      g1.const_data_ptr(),
      v.const_data_ptr(),
      x.const_data_ptr(),
      p,
      per_sample(eps, eps_tensor, g0, "eps"),
      gamma,
      h,
      central,
      last,
      lower,
      upper,
      in_box,
      v_new.mutable_data_ptr(),
      probe.mutable_data_ptr(),
      gap.mutable_data_ptr()};
  for_rows(rows, size, cpu::kernels().frank_wolfe_step, args);
  return {v_new, probe, gap};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(soatfast, CPU, m) { m.impl("frank_wolfe_step", TORCH_BOX(&frank_wolfe_step)); }

}  // namespace soatfast
