#include "../common.h"
#include "rows.h"

namespace soatfast {
namespace {

// g, x [B, D] -> s [B, D]
Tensor lmo(
    const Tensor& g_in, double p, double eps, std::optional<Tensor> eps_tensor, std::optional<Tensor> x_in,
    double lower, double upper) {
  check_order(p, !x_in.has_value());
  const Tensor g = dense_rows(g_in, "g");
  Tensor s = torch::stable::empty_like(g);
  std::optional<Tensor> x;  // dense, and kept until the rows are done
  if (x_in.has_value()) x = dense_rows(*x_in, g, g.size(0), "x");
  const cpu::Lmo args{
      dtype_of(g),
      g.size(1),
      g.const_data_ptr(),
      p,
      per_sample(eps, eps_tensor, g, "eps"),
      x.has_value() ? x->const_data_ptr() : nullptr,
      lower,
      upper,
      s.mutable_data_ptr()};
  for_rows(g.size(0), g.size(1), cpu::kernels().lmo, args);
  return s;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(soatfast, CPU, m) { m.impl("lmo", TORCH_BOX(&lmo)); }

}  // namespace soatfast
