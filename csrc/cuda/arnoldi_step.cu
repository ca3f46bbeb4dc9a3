// One Arnoldi step for the whole batch in one launch. A sample belongs to a cluster of blocks, each with a slice of the
// D entries; their partial sums meet in distributed shared memory. Below sm_90 there are no clusters: one block a sample.
#include <cooperative_groups.h>
#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include "../krylov_checks.h"
#include "../math/krylov.h"
#include "block.cuh"
#include "stream.h"

namespace soatfast {
namespace {

namespace cg = cooperative_groups;

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kMaxCluster = 8;       // blocks a sample; the portable limit
constexpr int64_t kMinSlice = 2048;  // entries worth a block

// The blocks of one sample. Every block gets the same totals, added in the same order.
struct Cluster {
  int rank, blocks;

  __device__ __forceinline__ void sync() const {
#if __CUDA_ARCH__ >= 900
    if (blocks > 1) {
      cg::this_cluster().sync();
      return;
    }
#endif
    __syncthreads();
  }

  // The sum over the blocks of entry k of a shared array; between two sync().
  __device__ __forceinline__ double total(double* mine, int k) const {
#if __CUDA_ARCH__ >= 900
    if (blocks > 1) {
      double sum = 0;
      for (int b = 0; b < blocks; ++b) sum += cg::this_cluster().map_shared_rank(mine, b)[k];
      return sum;
    }
#endif
    return mine[k];
  }
};

template <typename T>
struct Slice {
  int64_t begin, end, stride;  // entries [begin, end) of D = stride
  const T* basis;              // (m + 1, D)
  T* r;                        // (D,) the vector in work
};

// partial[k] = <v_k, r> over the slice: a warp takes every kWarps-th k.
template <typename T>
__device__ __forceinline__ void slice_dots(const Slice<T>& s, int64_t count, double* partial) {
  const int lane = threadIdx.x % 32;
  for (int64_t k = threadIdx.x / 32; k < count; k += kWarps) {
    const T* v = s.basis + k * s.stride;
    double total = 0;
    for (int64_t start = s.begin; start < s.end; start += 32 * 64) {  // at most 64 terms are added in T
      const int64_t stop = start + 32 * 64 < s.end ? start + 32 * 64 : s.end;
      T sum = 0;
      for (int64_t i = start + lane; i < stop; i += 32) sum += v[i] * s.r[i];
      total += static_cast<double>(sum);
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) total += __shfl_xor_sync(0xffffffffu, total, step);
    if (lane == 0) partial[k] = total;
  }
}

// r -= sum_k h_k v_k on the slice; returns the block's sum of squares of what is left.
template <typename T>
__device__ __forceinline__ double slice_subtract(const Slice<T>& s, int64_t count, const double* h) {
  double squares = 0;
  for (int64_t i = s.begin + threadIdx.x; i < s.end; i += kThreads) {
    T left = s.r[i];
    for (int64_t k = 0; k < count; ++k) left -= static_cast<T>(h[k]) * s.basis[k * s.stride + i];
    s.r[i] = left;
    squares += static_cast<double>(left * left);
  }
  return BlockTeam<kThreads>{}.reduce(squares, [](double a, double b) { return a + b; });
}

template <typename T>
struct Arnoldi {
  T* basis;               // [B, m + 1, D]
  const T* w;             // [B, D]
  const int32_t* status;  // [B], null at the start
  int64_t size, blocks, known;
  T *h, *norm;            // [m + 1, B] and [B] of this column; h null at the start
  T step, inverse;        // finite differences: w stands for (w - base) inverse, probe becomes x + step v
  const T *base, *x;      // [B, D] or null
  T* probe;               // [B, D] where there is an x
};

template <typename T>
__global__ void __launch_bounds__(kThreads) arnoldi_kernel(const Arnoldi<T> a) {
  extern __shared__ double shared[];  // partial (known + 1), h1 (known), h2 (known)
  const int64_t row = blockIdx.y, rows = gridDim.y, size = a.size, known = a.known;
  const int64_t blocks = a.h == nullptr ? 0 : a.blocks;
  const Cluster cluster{static_cast<int>(blockIdx.x), static_cast<int>(gridDim.x)};
  double *partial = shared, *h1 = shared + known + 1, *h2 = h1 + known;
  T* const first = a.basis + row * a.blocks * size;
  const int64_t width = (size + cluster.blocks - 1) / cluster.blocks;
  const int64_t begin = cluster.rank * width < size ? cluster.rank * width : size;
  const Slice<T> slice{begin, begin + width < size ? begin + width : size, size, first, first + known * size};
  const bool writes = cluster.rank == 0 && threadIdx.x == 0;
  const BlockTeam<kThreads> team;
  const auto finish = [&](T factor) {  // the new vector, 0 for factor 0, and the next probe
    for (int64_t i = slice.begin + threadIdx.x; i < slice.end; i += kThreads) {
      const T v = factor == T(0) ? T(0) : slice.r[i] * factor;
      slice.r[i] = v;
      if (a.x != nullptr) a.probe[row * size + i] = a.x[row * size + i] + a.step * v;
    }
  };

  if (a.status != nullptr && a.status[row] != kActive) {  // the same for every block of the cluster
    finish(T(0));
    if (cluster.rank == 0) {
      for (int64_t k = threadIdx.x; k < blocks; k += kThreads) a.h[k * rows + row] = T(0);
    }
    if (writes) a.norm[row] = T(0);
    return;
  }

  const T* from = a.w + row * size;
  const T* base = a.base == nullptr ? nullptr : a.base + row * size;
  const auto entry = [=](int64_t i) { return base == nullptr ? from[i] : (from[i] - base[i]) * a.inverse; };
  T largest = team.max(slice.end - slice.begin, [=](int64_t i) { return magnitude(entry(slice.begin + i)); });
  if (cluster.blocks > 1) {
    if (threadIdx.x == 0) partial[0] = static_cast<double>(largest);
    cluster.sync();
#if __CUDA_ARCH__ >= 900
    for (int b = 0; b < cluster.blocks; ++b) {
      const T other = static_cast<T>(cg::this_cluster().map_shared_rank(partial, b)[0]);
      largest = other > largest || other != other ? other : largest;
    }
#endif
    cluster.sync();
  }
  const T scale = is_finite(largest) ? near_one_scale(largest) : T(0);

  double squares = 0;
  for (int64_t i = slice.begin + threadIdx.x; i < slice.end; i += kThreads) {
    const T scaled = scale > T(0) ? entry(i) * scale : T(0);
    slice.r[i] = scaled;
    squares += static_cast<double>(scaled * scaled);
  }
  squares = team.reduce(squares, [](double a, double b) { return a + b; });  // after it the slice is written
  if (threadIdx.x == 0) partial[known] = squares;
  slice_dots(slice, known, partial);
  cluster.sync();
  const T length = static_cast<T>(sqrt(cluster.total(partial, static_cast<int>(known))));
  for (int64_t k = threadIdx.x; k < known; k += kThreads) h1[k] = cluster.total(partial, static_cast<int>(k));
  cluster.sync();  // everybody has read partial
  if (!(scale > T(0)) || !is_finite(length / scale)) {
    const T nan = bit_cast<T>(static_cast<Bits<T>>(Real<T>::kInfinity | 1));
    finish(T(0));
    if (cluster.rank == 0) {
      for (int64_t k = threadIdx.x; k < blocks; k += kThreads) a.h[k * rows + row] = k <= known ? nan : T(0);
    }
    if (writes) a.norm[row] = nan;
    return;
  }

  slice_subtract(slice, known, h1);
  slice_dots(slice, known, partial);
  cluster.sync();
  for (int64_t k = threadIdx.x; k < known; k += kThreads) h2[k] = cluster.total(partial, static_cast<int>(k));
  cluster.sync();
  const double rest = slice_subtract(slice, known, h2);
  if (threadIdx.x == 0) partial[0] = rest;
  cluster.sync();
  const T left = static_cast<T>(sqrt(cluster.total(partial, 0)));
  cluster.sync();  // no block leaves while another reads its shared memory
  finish(exhausted(left, length) ? T(0) : T(1) / left);
  if (cluster.rank == 0) {
    for (int64_t k = threadIdx.x; k < blocks; k += kThreads) {
      a.h[k * rows + row] =
          k < known ? static_cast<T>((h1[k] + h2[k]) / scale) : k == known ? left / scale : T(0);
    }
  }
  if (writes) a.norm[row] = length / scale;
}

// Whether the kernel that the driver loads here has the cluster's instructions: the device has clusters, and the code is
// not older PTX that the driver compiled for it ("8.0+PTX" on Hopper).
template <typename T>
bool has_clusters(int device) {
  int major = 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaFuncAttributes kernel{};
  return major >= 9 && cudaFuncGetAttributes(&kernel, arnoldi_kernel<T>) == cudaSuccess && kernel.ptxVersion >= 90;
}

// Enough blocks a sample to fill the device twice, a power of two, each with a slice worth it.
int cluster_size(int64_t rows, int64_t size, int device, bool clusters) {
  int processors = 0;
  cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  int blocks = 1;
  while (clusters && 2 * blocks <= kMaxCluster && rows * blocks < 2 * processors && size >= 2 * blocks * kMinSlice) {
    blocks *= 2;
  }
  return blocks;
}

template <typename T>
void launch(const Arnoldi<T>& arguments, int64_t rows, int device, cudaStream_t stream) {
  const int cluster = cluster_size(rows, arguments.size, device, has_clusters<T>(device));
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(cluster), static_cast<unsigned>(rows));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = static_cast<size_t>(3 * arguments.known + 1) * sizeof(double);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = cluster > 1 ? 1 : 0;
  const auto status_code = cudaLaunchKernelEx(&config, arnoldi_kernel<T>, arguments);
  STD_TORCH_CHECK(status_code == cudaSuccess, "arnoldi_step: ", cudaGetErrorString(status_code));
}

template <typename T>
T* data(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

template <typename T>
T* data(const std::optional<Tensor>& t) {
  return t.has_value() ? data<T>(*t) : nullptr;
}

// fill(number, arguments) completes what both ops have in common.
template <typename F>
void run(
    const Tensor& basis, const std::optional<Tensor>& x, const std::optional<Tensor>& probe, double step, F fill) {
  const int64_t rows = basis.size(0);
  STD_TORCH_CHECK(rows <= 65535, "arnoldi_step: at most 65535 samples on CUDA, got ", rows);
  if (rows == 0) return;
  const torch::stable::accelerator::DeviceGuard guard(basis.get_device_index());
  const cudaStream_t stream = stream_of(basis);
  const auto by_dtype = [&](auto number) {
    using T = decltype(number);
    Arnoldi<T> arguments{};
    arguments.basis = data<T>(basis);
    arguments.size = basis.size(2);
    arguments.blocks = basis.size(1);
    arguments.step = static_cast<T>(step);
    arguments.inverse = static_cast<T>(1 / step);
    arguments.x = data<T>(x);
    arguments.probe = x.has_value() ? data<T>(probe) : nullptr;
    fill(number, arguments);
    launch(arguments, rows, basis.get_device_index(), stream);
  };
  basis.scalar_type() == ScalarType::Double ? by_dtype(double{}) : by_dtype(float{});
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

// basis [B, m + 1, D], hessenberg [m, m + 1, B], norms [m, B], all updated; w [B, D], status [B]; base, x, probe [B, D]
void arnoldi_step(
    const Tensor& basis, const Tensor& hessenberg, const Tensor& norms, const Tensor& w_in, const Tensor& status,
    int64_t column, std::optional<Tensor> base, std::optional<Tensor> x, std::optional<Tensor> probe, double step) {
  const ArnoldiCall call = check_arnoldi(basis, hessenberg, norms, w_in, status, column, base, x, probe);
  STD_TORCH_CHECK(column < 2000, "arnoldi_step: at most 2000 columns on CUDA, got ", column + 1);
  run(basis, call.x, probe, step, [&](auto number, auto& arguments) {
    using T = decltype(number);
    arguments.w = data<T>(call.w);
    arguments.status = static_cast<const int32_t*>(status.const_data_ptr());
    arguments.known = column + 1;
    arguments.h = data<T>(hessenberg) + column * basis.size(1) * basis.size(0);
    arguments.norm = data<T>(norms) + column * basis.size(0);
    arguments.base = data<T>(call.base);
  });
}

// basis [B, m + 1, D] and probe [B, D] updated; r, x [B, D] -> ||r|| [B]
Tensor arnoldi_start(
    const Tensor& basis, const Tensor& r_in, std::optional<Tensor> x_in, std::optional<Tensor> probe, double step) {
  check_state(basis, "basis");
  const Tensor r = dense_like(r_in, basis, basis.size(0) * basis.size(2), "r");
  const std::optional<Tensor> x = check_probe(basis, x_in, probe);
  Tensor norm = torch::stable::new_empty(basis, {basis.size(0)});
  run(basis, x, probe, step, [&](auto number, auto& arguments) {
    using T = decltype(number);
    arguments.w = data<T>(r);
    arguments.norm = data<T>(norm);
  });
  return norm;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(soatfast, CUDA, m) {
  m.impl("arnoldi_step", TORCH_BOX(&arnoldi_step));
  m.impl("arnoldi_start", TORCH_BOX(&arnoldi_start));
}

}  // namespace soatfast
