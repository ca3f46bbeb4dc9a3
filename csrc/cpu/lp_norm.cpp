#include "../common.h"
#include "rows.h"

namespace soatfast {
namespace {

// g [B, D] -> ||g||_p [B]
Tensor lp_norm(const Tensor& g_in, double p) {
  check_order(p, true);
  const Tensor g = dense_rows(g_in, "g");
  Tensor norm = torch::stable::new_empty(g, {g.size(0)}, accumulate_dtype(g));
  const cpu::LpNorm args{dtype_of(g), g.size(1), g.const_data_ptr(), p, norm.mutable_data_ptr()};
  for_rows(g.size(0), g.size(1), cpu::kernels().lp_norm, args);
  return norm;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(soatfast, CPU, m) { m.impl("lp_norm", TORCH_BOX(&lp_norm)); }

}  // namespace soatfast
