// What kernel.cuh launches, for host code.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

#include "../device/parameter.h"

namespace opfuse {

struct AddLayerNormParameters {
    device::Parameter gamma, beta;  // [cols]
    device::Parameter bias;         // [cols], or null
};

// T is float, __half, or __nv_bfloat16.  Launches on `stream`, and does not wait.  Without
// `sum_is_read`, sum may be left as it is: a quarter of what is moved.
template <class T>
cudaError_t add_layer_norm(T* y, T* sum,                   // [rows, cols]
                           T const* x, T const* residual,  // [rows, cols]
                           AddLayerNormParameters parameters, int64_t rows, int64_t cols,
                           float epsilon, bool sum_is_read, cudaStream_t stream);

}  // namespace opfuse
