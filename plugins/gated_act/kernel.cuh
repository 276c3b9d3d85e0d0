// y = activation(gate) * up, elementwise; gate and up may be the halves of one packed tensor.
#pragma once
#include <cuda_runtime.h>

#include <algorithm>
#include <limits>

#include "../device/math.cuh"
#include "../device/vec.cuh"
#include "launch.h"

namespace opfuse {

// ---- kernels

inline constexpr int kThreads = 256;  // of a block

// Blocks tile [rows, cols] by blockDim.y rows and blockDim.x * kItems vectors, numbered row-major.
template <class T, Activation kActivation, int kVec, int kItems>
__global__ void __launch_bounds__(kThreads)
    gated_act_kernel(T* y,                           // [rows, cols]
                     T const* gate, T const* up,     // [rows, cols]
                     int64_t stride,                 // elements between their rows
                     int64_t rows, int64_t vectors,  // cols = vectors * kVec
                     int64_t tiles_per_row, int64_t tiles) {
    for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        int64_t const row = tile / tiles_per_row * blockDim.y + threadIdx.y;
        if (row >= rows) continue;
        int64_t const first = tile % tiles_per_row * blockDim.x * kItems + threadIdx.x;
#pragma unroll
        for (int k = 0; k < kItems; ++k) {
            int64_t const v = first + k * static_cast<int64_t>(blockDim.x);
            if (v >= vectors) break;
            auto item = device::load<kVec>(gate + row * stride, v);
            auto const factor = device::load<kVec>(up + row * stride, v);
#pragma unroll
            for (int i = 0; i < kVec; ++i)
                item.at[i] = device::from_float<T>(
                    device::activate<kActivation>(device::to_float(item.at[i])) *
                    device::to_float(factor.at[i]));
            device::store(y + row * vectors * kVec, v, item);
        }
    }
}

// ---- launchers

template <class T, Activation kActivation, int kVec>
cudaError_t launch_gated_act(T* y, T const* gate, T const* up, int64_t stride, int64_t rows,
                             int64_t cols, cudaStream_t stream) {
    constexpr int kItems = 2;
    int64_t const vectors = cols / kVec;
    int lanes = 1;
    while (lanes < kThreads && lanes * kItems < vectors) lanes *= 2;
    int const rows_per_block = kThreads / lanes;
    int64_t const tiles_per_row = (vectors + lanes * kItems - 1) / (lanes * kItems);
    int64_t const tiles = (rows + rows_per_block - 1) / rows_per_block * tiles_per_row;
    cudaLaunchConfig_t config{};
    config.gridDim =
        dim3(static_cast<unsigned>(std::min<int64_t>(tiles, std::numeric_limits<int32_t>::max())));
    config.blockDim = dim3(lanes, rows_per_block);
    config.stream = stream;
    return cudaLaunchKernelEx(&config, gated_act_kernel<T, kActivation, kVec, kItems>, y, gate, up,
                              stride, rows, vectors, tiles_per_row, tiles);
}

template <class T, int kVec>
cudaError_t launch_gated_act(T* y, T const* gate, T const* up, int64_t stride, int64_t rows,
                             int64_t cols, Activation activation, cudaStream_t stream) {
    auto const launch = [&]<Activation kActivation>() {
        return launch_gated_act<T, kActivation, kVec>(y, gate, up, stride, rows, cols, stream);
    };
    switch (activation) {
    case Activation::kSilu: return launch.template operator()<Activation::kSilu>();
    case Activation::kGelu: return launch.template operator()<Activation::kGelu>();
    case Activation::kGeluTanh: return launch.template operator()<Activation::kGeluTanh>();
    }
    return cudaErrorInvalidValue;
}

template <class T>
cudaError_t gated_act(T* y,                        // [rows, cols], contiguous
                      T const* gate, T const* up,  // [rows, cols], rows `stride` elements apart
                      int64_t stride, int64_t rows, int64_t cols, Activation activation,
                      cudaStream_t stream) {
    constexpr int kVec = device::kVecBytes / sizeof(T);
    if (rows < 0 || cols < 0 || stride < cols) return cudaErrorInvalidValue;
    if (rows == 0 || cols == 0) return cudaSuccess;
    if (stride == cols) {  // nothing between the rows: one long row vectorises whatever cols is
        stride = cols = rows * cols;
        rows = 1;
    }
    bool const vectors =
        device::aligned(y, gate, up) && cols % kVec == 0 && (rows == 1 || stride % kVec == 0);
    auto const launch = vectors ? launch_gated_act<T, kVec> : launch_gated_act<T, 1>;
    return launch(y, gate, up, stride, rows, cols, activation, stream);
}

}  // namespace opfuse
