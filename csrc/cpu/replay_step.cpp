#include "replay.h"

namespace soatfast {
namespace {

// memory [N, D], scale [N] for int8, index [B], g, x [B, D] -> x_adv [B, D]; rows `index` of memory and scale
Tensor replay_step(
    const Tensor& memory, std::optional<Tensor> scale, const Tensor& index_in, const Tensor& g_in, const Tensor& x_in,
    double p, double eps, std::optional<Tensor> eps_tensor, double gamma, double lower, double upper, bool in_box) {
  check_order(p, !in_box);
  const Tensor x = dense_rows(x_in, "x");
  const Tensor g = dense_rows(g_in, x, x.size(0), "g");
  const Tensor index = dense(index_in);
  const cpu::Remembered rows = check_memory(memory, scale, index, x);
  Tensor x_adv = torch::stable::empty_like(x);
  const cpu::ReplayStep args{
      dtype_of(x),
      x.size(1),
      rows,
      memory.mutable_data_ptr(),
      scale.has_value() ? static_cast<float*>(scale->mutable_data_ptr()) : nullptr,
      g.const_data_ptr(),
      x.const_data_ptr(),
      p,
      per_sample(eps, eps_tensor, x, "eps"),
      gamma,
      lower,
      upper,
      in_box,
      x_adv.mutable_data_ptr()};
  for_rows(x.size(0), x.size(1), cpu::kernels().replay_step, args);
  return x_adv;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(soatfast, CPU, m) { m.impl("replay_step", TORCH_BOX(&replay_step)); }

}  // namespace soatfast
