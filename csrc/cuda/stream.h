// The current CUDA stream of a tensor's device.
#pragma once

#include <cuda_runtime.h>

#include "../common.h"

namespace soatfast {

// The code is checked by hand: the macro for it has one name in torch 2.11 and another in 2.13.
inline cudaStream_t stream_of(const Tensor& t) {
  void* stream = nullptr;
  const auto code = aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream);
  STD_TORCH_CHECK(code == 0, "torch gives no CUDA stream for device ", t.get_device_index());
  return static_cast<cudaStream_t>(stream);
}

}  // namespace soatfast
