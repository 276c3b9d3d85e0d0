// y = x * rsqrt(mean(x^2) + epsilon) * gamma over each row.  Pure CUDA.
#pragma once
#include "../device/reduce.cuh"
#include "../device/row.cuh"
#include "launch.h"

namespace opfuse {

// ---- kernels

template <class T, int kVec, int kItems>
__global__ void __launch_bounds__(device::kMaxLanes)
    rms_norm_kernel(T* y, T const* x,         // [rows, cols]
                    device::Parameter gamma,  // [cols]
                    int64_t rows, int cols, float epsilon) {
    using device::Vec;
    device::for_each_row(rows, cols / kVec, [&](int64_t row, int vectors) {
        T const* from = x + row * cols;
        T* to = y + row * cols;
        device::RowTile<T, kVec, kItems> tile(from, vectors);
        tile.fill([&](int v) { return device::load<kVec>(from, v); });
        float const squares = device::row_sum(tile.sum([](float a) { return a * a; }));
        float const scale = rsqrtf(squares / cols + epsilon);
        tile.for_each([&](int v, Vec<T, kVec> item) {
            auto const g = device::load_parameter<T, kVec>(gamma, v);
#pragma unroll
            for (int i = 0; i < kVec; ++i)
                item.at[i] = device::from_float<T>(device::to_float(item.at[i]) * scale * g.at[i]);
            device::store(to, v, item);
        });
    });
}

// ---- launchers

template <class T>
cudaError_t rms_norm(T* y, T const* x,         // [rows, cols]
                     device::Parameter gamma,  // [cols]
                     int64_t rows, int64_t cols, float epsilon, cudaStream_t stream) {
    bool const vectors = device::aligned(y, x, gamma.data);
    return device::with_row_shape<T>(
        rows, cols, vectors, stream, [&](auto shape, cudaLaunchConfig_t config) {
            auto const kernel = rms_norm_kernel<T, shape.kVec, shape.kItems>;
            return cudaLaunchKernelEx(&config, kernel, y, x, gamma, rows, static_cast<int>(cols),
                                      epsilon);
        });
}

}  // namespace opfuse
