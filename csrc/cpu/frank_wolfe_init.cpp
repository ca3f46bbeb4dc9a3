#include "../common.h"
#include "rows.h"

namespace soatfast {
namespace {

// g0, x [B, D] -> v [B, D], probe [B, D] or [2B, D]
std::tuple<Tensor, Tensor> frank_wolfe_init(
    const Tensor& g0_in, const Tensor& x_in, double p, double eps, std::optional<Tensor> eps_tensor, int64_t init,
    double h, bool central, double lower, double upper) {
  check_order(p, std::isinf(lower) && std::isinf(upper));
  STD_TORCH_CHECK(0 <= init && init <= 2, "init: expected 0, 1 or 2, got ", init);
  const Tensor g0 = dense_rows(g0_in, "g0");
  const int64_t rows = g0.size(0), size = g0.size(1);
  const Tensor x = dense_rows(x_in, g0, rows, "x");
  Tensor v = torch::stable::empty_like(g0);
  Tensor probe = torch::stable::new_empty(g0, {central ? 2 * rows : rows, size});
  const cpu::FrankWolfeInit args{
      dtype_of(g0),
      size,
      rows,
      g0.const_data_ptr(),
      x.const_data_ptr(),
      p,
      per_sample(eps, eps_tensor, g0, "eps"),
      init,
      h,
      central,
      lower,
      upper,
      v.mutable_data_ptr(),
      probe.mutable_data_ptr()};
  for_rows(rows, size, cpu::kernels().frank_wolfe_init, args);
  return {v, probe};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(soatfast, CPU, m) { m.impl("frank_wolfe_init", TORCH_BOX(&frank_wolfe_init)); }

}  // namespace soatfast
