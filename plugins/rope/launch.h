// What kernel.cuh launches, for host code.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

#include "../device/parameter.h"

namespace opfuse {

// The rows of x, its heads, lie one behind another along these axes.
struct RopeShape {
    static constexpr int kMaxAxes = 8;

    struct Axis {
        int64_t size;
        int64_t cos_stride, sin_stride;  // in rows of cos and of sin; 0 where they are broadcast
    };

    int64_t heads() const {
        int64_t product = 1;
        for (int i = 0; i < axis_count; ++i) product *= axes[i].size;
        return product;
    }

    Axis axes[kMaxAxes];  // outermost first
    int axis_count = 0;
    int size = 0;     // elements of a row of x
    int turning = 0;  // the first of them that turn: a row of cos and of sin; even
};

// T is float, __half, or __nv_bfloat16.  Launches on `stream`, and does not wait.
template <class T>
cudaError_t rope(T* y, T const* x,                              // [..., size]
                 device::Parameter cos, device::Parameter sin,  // [..., turning]
                 RopeShape const& shape, bool interleaved, cudaStream_t stream);

}  // namespace opfuse
