#include "../common.h"
#include "rows.h"

namespace soatfast {
namespace {

// x_adv, g, x [B, D] -> x_adv [B, D]
Tensor pgd_step(
    const Tensor& x_adv_in, const Tensor& g_in, const Tensor& x_in, double p, double eps,
    std::optional<Tensor> eps_tensor, double alpha, std::optional<Tensor> alpha_tensor, double lower, double upper,
    bool exact, int64_t k) {
  check_order(p, false);
  const Tensor x = dense_rows(x_in, "x");
  const int64_t rows = x.size(0), size = x.size(1);
  STD_TORCH_CHECK(1 <= k && k <= size, "k: expected 1 to ", size, ", got ", k);
  const Tensor x_adv = dense_rows(x_adv_in, x, rows, "x_adv");
  const Tensor g = dense_rows(g_in, x, rows, "g");
  Tensor out = torch::stable::empty_like(x);
  const cpu::PgdStep args{
      dtype_of(x),
      size,
      x_adv.const_data_ptr(),
      g.const_data_ptr(),
      x.const_data_ptr(),
      p,
      per_sample(eps, eps_tensor, x, "eps"),
      per_sample(alpha, alpha_tensor, x, "alpha"),
      lower,
      upper,
      exact,
      k,
      out.mutable_data_ptr()};
  for_rows(rows, size, cpu::kernels().pgd_step, args);
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(soatfast, CPU, m) { m.impl("pgd_step", TORCH_BOX(&pgd_step)); }

}  // namespace soatfast
