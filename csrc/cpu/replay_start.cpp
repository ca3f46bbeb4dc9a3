#include "replay.h"

namespace soatfast {
namespace {

// memory [N, D], scale [N] for int8, index [B], x [B, D] -> x_adv [B, D]
Tensor replay_start(
    const Tensor& memory, std::optional<Tensor> scale, const Tensor& index_in, const Tensor& x_in, double eps,
    std::optional<Tensor> eps_tensor, double lower, double upper) {
  const Tensor x = dense_rows(x_in, "x");
  const Tensor index = dense(index_in);
  const cpu::Remembered rows = check_memory(memory, scale, index, x);
  Tensor x_adv = torch::stable::empty_like(x);
  const cpu::ReplayStart args{
      dtype_of(x),
      x.size(1),
      rows,
      memory.const_data_ptr(),
      scale.has_value() ? static_cast<const float*>(scale->const_data_ptr()) : nullptr,
      x.const_data_ptr(),
      per_sample(eps, eps_tensor, x, "eps"),
      lower,
      upper,
      x_adv.mutable_data_ptr()};
  for_rows(x.size(0), x.size(1), cpu::kernels().replay_start, args);
  return x_adv;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(soatfast, CPU, m) { m.impl("replay_start", TORCH_BOX(&replay_start)); }

}  // namespace soatfast
