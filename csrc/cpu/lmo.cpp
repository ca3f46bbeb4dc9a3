#include "../common.h"
#include "rows.h"

namespace soatfast {
namespace {

// g [B, D] -> s [B, D]
Tensor lmo(const Tensor& g_in, double p, double eps, std::optional<Tensor> eps_tensor) {
  check_order(p, true);
  const Tensor g = dense_rows(g_in, "g");
  Tensor s = torch::stable::empty_like(g);
  const cpu::Lmo args{
      dtype_of(g), g.size(1), g.const_data_ptr(), p, per_sample(eps, eps_tensor, g, "eps"), s.mutable_data_ptr()};
  for_rows(g.size(0), g.size(1), cpu::kernels().lmo, args);
  return s;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(soatfast, CPU, m) { m.impl("lmo", TORCH_BOX(&lmo)); }

}  // namespace soatfast
