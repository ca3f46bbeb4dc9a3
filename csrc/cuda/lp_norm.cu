// lp_norm on CUDA: one block per sample around the csrc/math core.
#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include "../common.h"
#include "../math/norm.h"
#include "block.cuh"
#include "stream.h"

namespace soatfast {
namespace {

constexpr int kThreads = 256;

// One block per sample.
template <Order P, typename S>
__global__ void __launch_bounds__(kThreads) lp_norm_kernel(
    const S* __restrict__ g,                 // [B, D]
    int64_t size,                            // D
    double p,
    accumulate_t<S>* __restrict__ norm) {    // [B]
  const int64_t row = blockIdx.x;
  const accumulate_t<S> value = lp_norm_row<P, S>(BlockTeam<kThreads>{}, size, g + row * size, p);
  if (threadIdx.x == 0) norm[row] = value;
}

template <typename S>
void launch(const void* g, int64_t rows, int64_t size, double p, void* norm, cudaStream_t stream) {
  const auto run = [&](auto kernel) {
    kernel<<<static_cast<unsigned>(rows), kThreads, 0, stream>>>(
        static_cast<const S*>(g), size, p, static_cast<accumulate_t<S>*>(norm));
  };
  switch (order_of(p)) {
    case Order::kOne: return run(lp_norm_kernel<Order::kOne, S>);
    case Order::kTwo: return run(lp_norm_kernel<Order::kTwo, S>);
    case Order::kInf: return run(lp_norm_kernel<Order::kInf, S>);
    case Order::kGeneral: return run(lp_norm_kernel<Order::kGeneral, S>);
  }
}

// g [B, D] -> ||g||_p [B]
Tensor lp_norm(const Tensor& g_in, double p) {
  check_order(p, true);
  const Tensor g = dense_rows(g_in, "g");
  Tensor norm = torch::stable::new_empty(g, {g.size(0)}, accumulate_dtype(g));
  const int64_t rows = g.size(0), size = g.size(1);
  if (rows == 0) return norm;
  const torch::stable::accelerator::DeviceGuard guard(g.get_device_index());
  const cudaStream_t stream = stream_of(g);
  const auto run = [&](auto launcher) {
    launcher(g.const_data_ptr(), rows, size, p, norm.mutable_data_ptr(), stream);
  };
  switch (dtype_of(g)) {
    case DType::kFloat: run(launch<float>); break;
    case DType::kDouble: run(launch<double>); break;
    case DType::kBFloat16: run(launch<BFloat16>); break;
    case DType::kHalf: run(launch<Half>); break;
  }
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return norm;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(soatfast, CUDA, m) { m.impl("lp_norm", TORCH_BOX(&lp_norm)); }

}  // namespace soatfast
