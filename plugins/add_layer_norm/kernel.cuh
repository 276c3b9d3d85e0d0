// sum = x + residual (+ bias), rounded to T; y = (sum - mean) * rsqrt(variance + epsilon) * gamma +
// beta, with the variance taken around the mean, not as E[x^2] - E[x]^2.  Pure CUDA.
#pragma once
#include "../device/reduce.cuh"
#include "../device/row.cuh"
#include "launch.h"

namespace opfuse {

// ---- kernels

// Vector v of the row: x + residual (+ bias), in fp32 with one rounding.
template <class T, int kVec>
__device__ device::Vec<T, kVec> add_vector(T const* x, T const* residual, device::Parameter bias,
                                           int v) {
    auto const a = device::load<kVec>(x, v);
    auto const b = device::load<kVec>(residual, v);
    device::Vec<float, kVec> total;
    if (bias.data) {
        total = device::load_parameter<T, kVec>(bias, v);
    } else {
#pragma unroll
        for (int i = 0; i < kVec; ++i) total.at[i] = 0.f;
    }
    device::Vec<T, kVec> out;
#pragma unroll
    for (int i = 0; i < kVec; ++i)
        out.at[i] = device::from_float<T>(device::to_float(a.at[i]) + device::to_float(b.at[i]) +
                                          total.at[i]);
    return out;
}

template <class T, int kVec, int kItems>
__global__ void __launch_bounds__(device::kMaxLanes)
    add_layer_norm_kernel(T* y, T* sum,                   // [rows, cols]
                          T const* x, T const* residual,  // [rows, cols]
                          AddLayerNormParameters parameters, int64_t rows, int cols,
                          float epsilon) {
    using device::Vec;
    device::for_each_row(rows, cols / kVec, [&](int64_t row, int vectors) {
        int64_t const start = row * cols;
        device::RowTile<T, kVec, kItems> tile(sum + start, vectors);
        tile.fill([&](int v) {
            auto const item = add_vector<T, kVec>(x + start, residual + start, parameters.bias, v);
            device::store(sum + start, v, item);
            return item;
        });
        float const mean = device::row_sum(tile.sum([](float a) { return a; })) / cols;
        auto const square = [mean](float a) { return (a - mean) * (a - mean); };
        float const scale = rsqrtf(device::row_sum(tile.sum(square)) / cols + epsilon);
        tile.for_each([&](int v, Vec<T, kVec> item) {
            auto const g = device::load_parameter<T, kVec>(parameters.gamma, v);
            auto const b = device::load_parameter<T, kVec>(parameters.beta, v);
#pragma unroll
            for (int i = 0; i < kVec; ++i) {
                float const normal = (device::to_float(item.at[i]) - mean) * scale;
                item.at[i] = device::from_float<T>(normal * g.at[i] + b.at[i]);
            }
            device::store(y + start, v, item);
        });
    });
}

// ---- launchers

template <class T>
cudaError_t add_layer_norm(T* y, T* sum,                   // [rows, cols]
                           T const* x, T const* residual,  // [rows, cols]
                           AddLayerNormParameters parameters, int64_t rows, int64_t cols,
                           float epsilon, cudaStream_t stream) {
    bool const vectors =
        device::aligned(y, sum, x, residual) &&
        device::aligned(parameters.gamma.data, parameters.beta.data, parameters.bias.data);
    return device::with_row_shape<T>(
        rows, cols, vectors, stream, [&](auto shape, cudaLaunchConfig_t config) {
            auto const kernel = add_layer_norm_kernel<T, shape.kVec, shape.kItems>;
            return cudaLaunchKernelEx(&config, kernel, y, sum, x, residual, parameters, rows,
                                      static_cast<int>(cols), epsilon);
        });
}

}  // namespace opfuse
