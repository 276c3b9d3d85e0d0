// y = activation(gate) * up, elementwise; gate and up may be the halves of one packed tensor.
#pragma once
#include <algorithm>
#include <cstring>

#include "../device/division.cuh"
#include "../device/launch.cuh"
#include "../device/math.cuh"
#include "../device/vec.cuh"
#include "launch.h"

namespace opfuse {

// ---- kernels

inline constexpr int kThreads = 256;  // of a block
inline constexpr int kSector = 32;    // bytes that L2 fetches
// Up to so many vectors a multiprocessor, each thread has one: all of them are in flight at once.
inline constexpr int kFewVectors = 1024;

// How a row of y is cut into vectors of 16 bytes.  kShifted: where y's memory is aligned, so that
// the first and the last may reach beyond the row; gate and up start anywhere.
template <class T, int kVec, bool kShifted>
struct Columns {
    int64_t cols;
    int64_t stride, count;  // of gate and up: elements between rows, and in all

    // The first column of vector `v` of a row.
    __device__ int64_t first(T const* y_row, int64_t v) const {
        if constexpr (!kShifted) return v * kVec;
        return v * kVec - reinterpret_cast<uintptr_t>(y_row) / sizeof(T) % kVec;
    }
    __device__ bool whole(int64_t column) const {
        return !kShifted || (column >= 0 && column + kVec <= cols);
    }
    __device__ auto load(T const* from, int64_t row, int64_t column) const {
        if constexpr (!kShifted) {
            return device::load<kVec>(from + row * stride + column, 0);
        } else {
            if (whole(column))
                return device::load_unaligned<kVec>(from, row * stride + column, count);
            device::Vec<T, kVec> part;
#pragma unroll
            for (int i = 0; i < kVec; ++i)
                if (column + i >= 0 && column + i < cols)
                    part.at[i] = from[row * stride + column + i];
            device::Unaligned<T, kVec> out;
            memcpy(out.word, &part, sizeof(part));
            out.shift = 0;
            return out;
        }
    }
    __device__ void store(T* y_row, int64_t column, device::Vec<T, kVec> const& item) const {
        if (whole(column)) return device::store(y_row + column, 0, item);
#pragma unroll
        for (int i = 0; i < kVec; ++i)
            if (column + i >= 0 && column + i < cols) y_row[column + i] = item.at[i];
    }
};

template <class T, int kVec>
__device__ device::Vec<T, kVec> value_of(device::Vec<T, kVec> const& loaded) {
    return loaded;
}
template <class T, int kVec>
__device__ device::Vec<T, kVec> value_of(device::Unaligned<T, kVec> const& loaded) {
    return loaded.value();
}

// Blocks tile [rows, vectors] by blockDim.y rows and blockDim.x * kItems vectors, row-major.
template <class T, Activation kActivation, int kVec, bool kShifted, int kItems>
__global__ void __launch_bounds__(kThreads)
    gated_act_kernel(T* y,                        // [rows, cols]
                     T const* gate, T const* up,  // [rows, cols]
                     Columns<T, kVec, kShifted> columns, int64_t rows, int64_t vectors,
                     int64_t tiles_per_row, int64_t tiles) {
    // `use(k, row, column)` for this thread's vectors of a tile.
    auto const for_each = [&](int64_t tile, auto use) {
        auto const [tile_row, tile_in_row] = device::divide(tile, tiles_per_row);
        int64_t const row = tile_row * blockDim.y + threadIdx.y;
        int64_t const first = tile_in_row * blockDim.x * kItems + threadIdx.x;
#pragma unroll
        for (int k = 0; k < kItems; ++k) {
            int64_t const v = first + k * static_cast<int64_t>(blockDim.x);
            if (row < rows && v < vectors) use(k, row, columns.first(y + row * columns.cols, v));
        }
    };
    device::let_next_start();
    if (device::tuning::kPrefetch && threadIdx.x * kVec * sizeof(T) % kSector == 0)
        for_each(blockIdx.x, [&](int, int64_t row, int64_t column) {
            if (!columns.whole(column)) return;
            device::prefetch(gate + row * columns.stride + column);
            device::prefetch(up + row * columns.stride + column);
        });
    device::wait_for_previous();
    for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        decltype(columns.load(gate, 0, 0)) gates[kItems], ups[kItems];
        for_each(tile, [&](int k, int64_t row, int64_t column) {
            gates[k] = columns.load(gate, row, column);
            ups[k] = columns.load(up, row, column);
        });
        for_each(tile, [&](int k, int64_t row, int64_t column) {
            auto product = device::widen(value_of(gates[k]));
            auto const factor = device::widen(value_of(ups[k]));
#pragma unroll
            for (int i = 0; i < kVec; ++i)
                product.at[i] = device::activate<kActivation, T>(product.at[i]) * factor.at[i];
            columns.store(y + row * columns.cols, column, device::narrow<T>(product));
        });
    }
}

// ---- launchers

template <class T, Activation kActivation, int kVec, bool kShifted, int kItems>
cudaError_t launch_gated_act(T* y, T const* gate, T const* up, int64_t stride, int64_t rows,
                             int64_t cols, device::Machine const& machine, cudaStream_t stream) {
    int64_t const vectors = (cols + (kShifted ? 2 * kVec - 2 : 0)) / kVec;
    int lanes = 1;
    while (lanes < kThreads && lanes * kItems < vectors) lanes *= 2;
    int const rows_per_block = kThreads / lanes;
    int64_t const tiles_per_row = (vectors + lanes * kItems - 1) / (lanes * kItems);
    int64_t const tiles = (rows + rows_per_block - 1) / rows_per_block * tiles_per_row;
    device::Grid grid;
    grid.blocks = tiles;
    grid.threads = dim3(lanes, rows_per_block);
    Columns<T, kVec, kShifted> const columns{cols, stride, (rows - 1) * stride + cols};
    return device::launch(gated_act_kernel<T, kActivation, kVec, kShifted, kItems>, machine, grid,
                          stream, y, gate, up, columns, rows, vectors, tiles_per_row, tiles);
}

template <class T, bool kShifted>
cudaError_t launch_gated_act(T* y, T const* gate, T const* up, int64_t stride, int64_t rows,
                             int64_t cols, Activation activation, cudaStream_t stream) {
    constexpr int kVec = device::kVecBytes / sizeof(T);
    device::Machine machine;
    cudaError_t const status = device::current_machine(machine);
    if (status != cudaSuccess) return status;
    bool const few = rows * cols / kVec <= int64_t{machine.multiprocessors} * kFewVectors;
    auto const launch = [&]<Activation kActivation>() {
        auto const with = few ? launch_gated_act<T, kActivation, kVec, kShifted, 1>
                              : launch_gated_act<T, kActivation, kVec, kShifted, 2>;
        return with(y, gate, up, stride, rows, cols, machine, stream);
    };
    switch (activation) {
    case Activation::kSilu: return launch.template operator()<Activation::kSilu>();
    case Activation::kGelu: return launch.template operator()<Activation::kGelu>();
    case Activation::kGeluTanh: return launch.template operator()<Activation::kGeluTanh>();
    default: return cudaErrorInvalidValue;
    }
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
    bool const aligned =
        device::aligned(y, gate, up) && cols % kVec == 0 && (rows == 1 || stride % kVec == 0);
    auto const launch = aligned ? launch_gated_act<T, false> : launch_gated_act<T, true>;
    return launch(y, gate, up, stride, rows, cols, activation, stream);
}

}  // namespace opfuse
