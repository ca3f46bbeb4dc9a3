#include "../common.h"
#include "rows.h"

namespace soatfast {
namespace {

// x_adv, x [B, D] -> x_adv [B, D]
Tensor project(
    const Tensor& x_adv_in, const Tensor& x_in, double p, double eps, std::optional<Tensor> eps_tensor, double lower,
    double upper, bool exact) {
  check_order(p, false);
  const Tensor x = dense_rows(x_in, "x");
  const int64_t rows = x.size(0), size = x.size(1);
  const Tensor x_adv = dense_rows(x_adv_in, x, rows, "x_adv");
  Tensor out = torch::stable::empty_like(x);
  const cpu::Project args{
      dtype_of(x),
      size,
      x_adv.const_data_ptr(),
      x.const_data_ptr(),
      p,
      per_sample(eps, eps_tensor, x, "eps"),
      lower,
      upper,
      exact,
      out.mutable_data_ptr()};
  for_rows(rows, size, cpu::kernels().project, args);
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(soatfast, CPU, m) { m.impl("project", TORCH_BOX(&project)); }

}  // namespace soatfast
