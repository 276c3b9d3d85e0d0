// sum = x + residual, rounded to T; y = sum * rsqrt(mean(sum^2) + epsilon) * gamma.  Pure CUDA.
#pragma once
#include "../device/reduce.cuh"
#include "../device/row.cuh"
#include "launch.h"

namespace opfuse {

// ---- kernels

template <class T, int kVec, int kItems>
__global__ void __launch_bounds__(device::kMaxLanes)
    add_rms_norm_kernel(T* y, T* sum,                   // [rows, cols]
                        T const* x, T const* residual,  // [rows, cols]
                        device::Parameter gamma,        // [cols]
                        int64_t rows, int cols, float epsilon) {
    using device::Vec;
    device::for_each_row(rows, cols / kVec, [&](int64_t row, int vectors) {
        int64_t const start = row * cols;
        device::RowTile<T, kVec, kItems> tile(sum + start, vectors);
        tile.fill([&](int v) {
            auto item = device::load<kVec>(x + start, v);
            auto const other = device::load<kVec>(residual + start, v);
#pragma unroll
            for (int i = 0; i < kVec; ++i)
                item.at[i] = device::from_float<T>(device::to_float(item.at[i]) +
                                                   device::to_float(other.at[i]));
            device::store(sum + start, v, item);
            return item;
        });
        float const squares = device::row_sum(tile.sum([](float a) { return a * a; }));
        float const scale = rsqrtf(squares / cols + epsilon);
        tile.for_each([&](int v, Vec<T, kVec> item) {
            auto const g = device::load_parameter<T, kVec>(gamma, v);
#pragma unroll
            for (int i = 0; i < kVec; ++i)
                item.at[i] = device::from_float<T>(device::to_float(item.at[i]) * scale * g.at[i]);
            device::store(y + start, v, item);
        });
    });
}

// ---- launchers

template <class T>
cudaError_t add_rms_norm(T* y, T* sum,                   // [rows, cols]
                         T const* x, T const* residual,  // [rows, cols]
                         device::Parameter gamma,        // [cols]
                         int64_t rows, int64_t cols, float epsilon, cudaStream_t stream) {
    bool const vectors = device::aligned(y, sum, x, residual, gamma.data);
    return device::with_row_shape<T>(
        rows, cols, vectors, stream, [&](auto shape, cudaLaunchConfig_t config) {
            auto const kernel = add_rms_norm_kernel<T, shape.kVec, shape.kItems>;
            return cudaLaunchKernelEx(&config, kernel, y, sum, x, residual, gamma, rows,
                                      static_cast<int>(cols), epsilon);
        });
}

}  // namespace opfuse
