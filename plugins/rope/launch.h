// What kernel.cuh launches, for host code.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

#include "../device/parameter.h"

namespace opfuse {

// How the rows of x, its heads, stand to the rows of cos and sin.  Strides are in rows.
struct RopeShape {
    static constexpr int kMaxAxes = 8;

    struct Axis {
        int64_t size, stride;
        int64_t cos_stride, sin_stride;  // 0 where they are broadcast
    };

    Axis axes[kMaxAxes];  // outermost first
    int axis_count = 0;
    int64_t repeats = 1;          // rows that turn alike, beside those axes
    int64_t repeat_stride = 0;    // between these rows of x
    bool repeats_inside = false;  // they are closer to each other than the rows of the axes
    int size = 0;                 // elements of a row of x
    int turning = 0;              // the first of them that turn: a row of cos and of sin; even

    int64_t positions() const {
        int64_t product = 1;
        for (int i = 0; i < axis_count; ++i) product *= axes[i].size;
        return product;
    }
};

// T is float, __half, or __nv_bfloat16.  Launches on `stream`, and does not wait.
template <class T>
cudaError_t rope(T* y, T const* x,                              // [..., size]
                 device::Parameter cos, device::Parameter sin,  // [..., turning]
                 RopeShape const& shape, bool interleaved, cudaStream_t stream);

}  // namespace opfuse
