// y = activation(gate) * up, elementwise; gate and up may be the halves of one packed tensor.
#pragma once
#include <limits>

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

template <class T, Activation kActivation, int kVec>
__device__ device::Vec<T, kVec> gate_with(device::Vec<T, kVec> const& gates,
                                          device::Vec<T, kVec> const& ups) {
    auto product = device::widen(gates);
    auto const factor = device::widen(ups);
#pragma unroll
    for (int i = 0; i < kVec; ++i)
        product.at[i] = device::activate<kActivation, T>(product.at[i]) * factor.at[i];
    return device::narrow<T>(product);
}

// Blocks tile [rows, vectors] by blockDim.y rows and blockDim.x * kItems vectors, row-major.
template <class T, Activation kActivation, int kVec, int kItems>
__global__ void __launch_bounds__(kThreads)
    gated_act_kernel(T* y,                           // [rows, cols]
                     T const* gate, T const* up,     // [rows, cols]
                     int64_t stride,                 // elements between their rows
                     int64_t rows, int64_t vectors,  // cols = vectors * kVec
                     int64_t tiles_per_row, int64_t tiles) {
    // `use(k, row, vector)` for this thread's vectors of a tile.
    auto const for_each = [&](int64_t tile, auto use) {
        auto const [tile_row, tile_in_row] = device::divide(tile, tiles_per_row);
        int64_t const row = tile_row * blockDim.y + threadIdx.y;
        int64_t const first = tile_in_row * blockDim.x * kItems + threadIdx.x;
#pragma unroll
        for (int k = 0; k < kItems; ++k) {
            int64_t const v = first + k * static_cast<int64_t>(blockDim.x);
            if (row < rows && v < vectors) use(k, row, v);
        }
    };
    if (device::tuning::kPrefetch && threadIdx.x * kVec * sizeof(T) % kSector == 0)
        for_each(blockIdx.x, [&](int, int64_t row, int64_t v) {
            device::prefetch(gate + row * stride + v * kVec);
            device::prefetch(up + row * stride + v * kVec);
        });
    device::wait_for_previous();
    device::let_next_start();
    for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        device::Vec<T, kVec> gates[kItems], ups[kItems];
        for_each(tile, [&](int k, int64_t row, int64_t v) {
            gates[k] = device::load<kVec>(gate + row * stride, v);
            ups[k] = device::load<kVec>(up + row * stride, v);
        });
        for_each(tile, [&](int k, int64_t row, int64_t v) {
            device::store(y + row * vectors * kVec, v, gate_with<T, kActivation>(gates[k], ups[k]));
        });
    }
}

// Where rows start at any element: a thread makes 16 aligned bytes of y, whatever rows they are of.
template <class T, Activation kActivation>
__global__ void __launch_bounds__(kThreads)
    shifted_gated_act_kernel(T* y,                        // [rows, cols]
                             T const* gate, T const* up,  // [rows, cols]
                             int64_t stride,              // elements between their rows
                             int64_t rows, int64_t cols, device::Divisor by_cols,
                             bool divides) {  // it holds for all of y
    constexpr int kVec = device::kVecBytes / sizeof(T);
    using Vec = device::Vec<T, kVec>;
    using Blocks = device::Blocks<T, kVec>;
    int const past = static_cast<int>(reinterpret_cast<uintptr_t>(y) / sizeof(T) % kVec);
    int64_t const total = rows * cols, count = (rows - 1) * stride + cols;
    int64_t const threads = int64_t{gridDim.x} * kThreads;
    device::let_next_start();
    device::wait_for_previous();
    for (int64_t first = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kVec - past;
         first < total; first += threads * kVec) {
        int64_t const start = max(first, int64_t{0});
        int64_t const row = divides ? by_cols.quotient(start) : start / cols;
        int64_t column = start - row * cols, at = row * stride + column;
        if (first >= 0 && column + kVec <= cols && Blocks::inside(gate, at, count) &&
            Blocks::inside(up, at, count)) {
            Blocks const gates(gate + at), ups(up + at);
            Vec const product = gate_with<T, kActivation>(gates.elements(), ups.elements());
            device::store(y + first, 0, product);
            continue;
        }
#pragma unroll 1
        for (int64_t i = start; i < min(first + kVec, total); ++i, ++at) {
            device::Vec<T, 1> const one{gate[at]}, other{up[at]};
            y[i] = gate_with<T, kActivation>(one, other).at[0];
            if (++column == cols) {
                column = 0;
                at += stride - cols;
            }
        }
    }
}

// ---- launchers

template <class T, Activation kActivation, int kVec, int kItems>
cudaError_t launch_gated_act(T* y, T const* gate, T const* up, int64_t stride, int64_t rows,
                             int64_t cols, device::Machine const& machine, cudaStream_t stream) {
    int64_t const vectors = cols / kVec;
    int lanes = 1;
    while (lanes < kThreads && lanes * kItems < vectors) lanes *= 2;
    int const rows_per_block = kThreads / lanes;
    int64_t const tiles_per_row = (vectors + lanes * kItems - 1) / (lanes * kItems);
    int64_t const tiles = (rows + rows_per_block - 1) / rows_per_block * tiles_per_row;
    device::Grid grid;
    grid.blocks = tiles;
    grid.threads = dim3(lanes, rows_per_block);
    return device::launch(gated_act_kernel<T, kActivation, kVec, kItems>, machine, grid, stream, y,
                          gate, up, stride, rows, vectors, tiles_per_row, tiles);
}

// `run.template operator()<kActivation>()`.
template <class Run>
cudaError_t with_gate(Activation activation, Run run) {
    switch (activation) {
    case Activation::kSilu: return run.template operator()<Activation::kSilu>();
    case Activation::kGelu: return run.template operator()<Activation::kGelu>();
    case Activation::kGeluTanh: return run.template operator()<Activation::kGeluTanh>();
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
    device::Machine machine;
    cudaError_t const status = device::current_machine(machine);
    if (status != cudaSuccess) return status;
    bool const aligned =
        device::aligned(y, gate, up) && cols % kVec == 0 && (rows == 1 || stride % kVec == 0);
    bool const few = rows * cols / kVec <= int64_t{machine.multiprocessors} * kFewVectors;
    return with_gate(activation, [&]<Activation kActivation>() {
        if (!aligned) {
            device::Grid grid{.threads = dim3(kThreads)};
            grid.blocks = (rows * cols / kVec + 1 + kThreads) / kThreads;
            bool const divides = rows * cols <= std::numeric_limits<int32_t>::max();
            return device::launch(shifted_gated_act_kernel<T, kActivation>, machine, grid, stream,
                                  y, gate, up, stride, rows, cols,
                                  divides ? device::Divisor(cols) : device::Divisor(), divides);
        }
        auto const with = few ? launch_gated_act<T, kActivation, kVec, 1>
                              : launch_gated_act<T, kActivation, kVec, 2>;
        return with(y, gate, up, stride, rows, cols, machine, stream);
    });
}

}  // namespace opfuse
