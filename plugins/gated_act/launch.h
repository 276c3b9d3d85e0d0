// What kernel.cuh launches, for host code.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

#include "../device/activation.h"

namespace opfuse {

using device::Activation;

// T is float, __half, or __nv_bfloat16.  Launches on `stream`, and does not wait.
template <class T>
cudaError_t gated_act(T* y,                        // [rows, cols], contiguous
                      T const* gate, T const* up,  // [rows, cols], rows `stride` elements apart
                      int64_t stride, int64_t rows, int64_t cols, Activation activation,
                      cudaStream_t stream);

}  // namespace opfuse
