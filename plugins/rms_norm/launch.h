// What kernel.cuh launches, for host code.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

#include "../device/parameter.h"

namespace opfuse {

// T is float, __half, or __nv_bfloat16.  Launches on `stream`, and does not wait.
template <class T>
cudaError_t rms_norm(T* y, T const* x,         // [rows, cols]
                     device::Parameter gamma,  // [cols]
                     int64_t rows, int64_t cols, float epsilon, cudaStream_t stream);

}  // namespace opfuse
