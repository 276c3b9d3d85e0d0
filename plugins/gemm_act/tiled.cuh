// y = activation(x w + bias) + residual on mma.sync, for any sizes and alignment: sm_80 and later.
//
// A block of eight warps has 128 rows by 128 columns, two warps by four; each stage brings 32 of
// the depth.  Gated, a block has 64 columns of y: of each warp's 32, 16 are of the gate, and the
// other 16 of what it lets through, so that one thread has both.
#pragma once
#include <algorithm>

#include "../device/launch.cuh"
#include "../device/mma.cuh"
#include "../device/vec.cuh"
#include "epilogue.cuh"
#include "launch.h"

namespace opfuse {

// ---- kernels

template <bool kByRows>
struct TiledShape {
    static constexpr int kThreads = 256;
    static constexpr int kRows = 128, kCols = 128, kDepth = 32, kStages = 3;
    static constexpr int kVec = 8;               // elements of a copy
    static constexpr int kXStride = kDepth + 8;  // elements of a row in shared memory
    static constexpr int kWeightStride = kByRows ? kCols + 8 : kDepth + 8;
    static constexpr int kXSize = kRows * kXStride;
    static constexpr int kStageSize = kXSize + (kByRows ? kDepth : kCols) * kWeightStride;
    static constexpr int kSharedBytes = kStages * kStageSize * 2;
};

// Where column `inside` of a tile is in the weight, and where its columns of that kind end.
struct WeightColumn {
    int64_t at, end;
};

__device__ inline WeightColumn weight_column(Gemm const& g, int first_col, int inside) {
    if (!g.gated) return {int64_t{first_col} + inside, g.cols};
    int64_t const kind = inside / 16 % 2 ? g.cols : 0;  // up follows gate
    return {kind + first_col + inside / 32 * 16 + inside % 16, kind + g.cols};
}

// Copies up to kVec elements of `from` to shared memory, zeros beyond `count`.
template <class T>
__device__ void copy_vector(T* to, T const* from, int64_t count, bool aligned) {
    if (aligned) return device::copy_async(to, from, count > 0);
#pragma unroll
    for (int i = 0; i < 8; ++i) to[i] = i < count ? from[i] : device::from_float<T>(0.f);
}

template <class T, bool kByRows>
__device__ void load_stage(Gemm const& g, T* stage, int64_t first_row, int first_col, int k) {
    using S = TiledShape<kByRows>;
    T const* const x = static_cast<T const*>(g.x);
    T const* const weight = static_cast<T const*>(g.weight);
#pragma unroll
    for (int i = threadIdx.x; i < S::kRows * S::kDepth / S::kVec; i += S::kThreads) {
        int const row = i / (S::kDepth / S::kVec), at = i % (S::kDepth / S::kVec) * S::kVec;
        int64_t const left = first_row + row < g.rows ? g.depth - k - at : 0;
        T const* const from = left > 0 ? x + (first_row + row) * g.depth + k + at : x;
        copy_vector(stage + row * S::kXStride + at, from, left, g.in_vectors);
    }
    T* const to = stage + S::kXSize;
#pragma unroll
    for (int i = threadIdx.x; i < S::kCols * S::kDepth / S::kVec; i += S::kThreads) {
        if constexpr (kByRows) {
            int const row = i / (S::kCols / S::kVec), at = i % (S::kCols / S::kVec) * S::kVec;
            WeightColumn const col = weight_column(g, first_col, at);
            int64_t const stride = g.gated ? 2 * int64_t{g.cols} : g.cols;
            int64_t const left = k + row < g.depth ? col.end - col.at : 0;
            T const* const from = left > 0 ? weight + (k + row) * stride + col.at : weight;
            copy_vector(to + row * S::kWeightStride + at, from, left, g.in_vectors);
        } else {
            int const inside = i / (S::kDepth / S::kVec), at = i % (S::kDepth / S::kVec) * S::kVec;
            WeightColumn const col = weight_column(g, first_col, inside);
            int64_t const left = col.at < col.end ? g.depth - k - at : 0;
            T const* const from = left > 0 ? weight + col.at * g.depth + k + at : weight;
            copy_vector(to + inside * S::kWeightStride + at, from, left, g.in_vectors);
        }
    }
}

// sums [64, 32] += x w of a stage, for this warp.
template <class T, bool kByRows>
__device__ void multiply_stage(float (&sums)[4][4][4], T const* stage, int warp_row, int warp_col,
                               int lane) {
    using S = TiledShape<kByRows>;
    T const* const x = stage + (warp_row + lane % 16) * S::kXStride + lane / 16 * 8;
    T const* const weight =
        stage + S::kXSize +
        (kByRows ? lane % 16 * S::kWeightStride + warp_col + lane / 16 * 8
                 : (warp_col + lane / 16 * 8 + lane % 8) * S::kWeightStride + lane / 8 % 2 * 8);
#pragma unroll
    for (int k = 0; k < S::kDepth; k += 16) {
        uint32_t a[4][4], b[2][4];
#pragma unroll
        for (int m = 0; m < 4; ++m) device::load_matrices(a[m], x + m * 16 * S::kXStride + k);
#pragma unroll
        for (int n = 0; n < 2; ++n) {
            if constexpr (kByRows)
                device::load_transposed(b[n], weight + k * S::kWeightStride + n * 16);
            else
                device::load_matrices(b[n], weight + n * 16 * S::kWeightStride + k);
        }
#pragma unroll
        for (int m = 0; m < 4; ++m)
#pragma unroll
            for (int n = 0; n < 4; ++n)
                device::multiply_add<T>(sums[m][n], a[m], b[n / 2][n % 2 * 2],
                                        b[n / 2][n % 2 * 2 + 1]);
    }
}

// A pair of neighbouring columns of y from the sums of this tile.
template <class T>
__device__ void store_pair(Gemm const& g, float2 sum, float2 up, int64_t row, int col) {
    T const* const bias = static_cast<T const*>(g.bias);
    T const* const residual = static_cast<T const*>(g.residual);
    auto const finished = [&](float value, float other, int64_t c) {
        if (c >= g.cols) return 0.f;
        value = device::activate_as(g.activation, value, bias ? device::to_float(bias[c]) : 0.f);
        if (g.gated) value *= bias ? other + device::to_float(bias[g.cols + c]) : other;
        return residual ? value + device::to_float(residual[row * g.cols + c]) : value;
    };
    float const first = finished(sum.x, up.x, col), second = finished(sum.y, up.y, col + 1);
    T* const y = static_cast<T*>(g.y) + row * g.cols + col;
    if (g.y_in_pairs) {
        *reinterpret_cast<uint32_t*>(y) = device::pack<T>(first, second);
        return;
    }
    y[0] = device::from_float<T>(first);
    if (col + 1 < g.cols) y[1] = device::from_float<T>(second);
}

template <class T>
__device__ void store_tile(Gemm const& g, float (&sums)[4][4][4], int64_t first_row, int first_col,
                           int lane) {
#pragma unroll
    for (int m = 0; m < 4; ++m)
#pragma unroll
        for (int n = 0; n < 4; ++n) {
            if (g.gated && n >= 2) continue;
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                int64_t const row = first_row + m * 16 + lane / 4 + r * 8;
                int const col = first_col + n * 8 + lane % 4 * 2;
                float const(&sum)[4] = sums[m][n], (&up)[4] = sums[m][(n + 2) % 4];
                if (row < g.rows && col < g.cols)
                    store_pair<T>(g, {sum[2 * r], sum[2 * r + 1]}, {up[2 * r], up[2 * r + 1]}, row,
                                  col);
            }
        }
}

template <class T, bool kByRows>
__global__ void __launch_bounds__(TiledShape<kByRows>::kThreads)
    tiled_gemm_kernel(Gemm const g, int tile_cols) {
    using S = TiledShape<kByRows>;
    extern __shared__ __align__(16) unsigned char shared[];
    T* const stages = reinterpret_cast<T*>(shared);
    int64_t const first_row = blockIdx.x / tile_cols * int64_t{S::kRows};
    int const first_col = blockIdx.x % tile_cols * (g.gated ? S::kCols / 2 : S::kCols);
    int const lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int const warp_row = warp / 4 * 64, warp_col = warp % 4 * 32;
    int const steps = (g.depth + S::kDepth - 1) / S::kDepth;
    float sums[4][4][4] = {};
    for (int step = 0; step < S::kStages - 1; ++step) {
        if (step < steps)
            load_stage<T, kByRows>(g, stages + step * S::kStageSize, first_row, first_col,
                                   step * S::kDepth);
        device::commit_copies();
    }
    for (int step = 0; step < steps; ++step) {
        device::wait_for_copies<S::kStages - 2>();
        __syncthreads();  // the stage is there, and nobody reads the one before it any more
        int const next = step + S::kStages - 1;
        if (next < steps)
            load_stage<T, kByRows>(g, stages + next % S::kStages * S::kStageSize, first_row,
                                   first_col, next * S::kDepth);
        device::commit_copies();
        multiply_stage<T, kByRows>(sums, stages + step % S::kStages * S::kStageSize, warp_row,
                                   warp_col, lane);
    }
    device::wait_for_copies<0>();
    store_tile<T>(g, sums, first_row + warp_row, first_col + (g.gated ? warp_col / 2 : warp_col),
                  lane);
}

// ---- launchers

template <class T, bool kByRows>
cudaError_t launch_tiled(Gemm const& g, cudaStream_t stream) {
    using S = TiledShape<kByRows>;
    int const of_tile = g.gated ? S::kCols / 2 : S::kCols;
    int const tile_cols = (g.cols + of_tile - 1) / of_tile;
    int64_t const blocks = (g.rows + S::kRows - 1) / S::kRows * tile_cols;
    if (blocks > INT32_MAX) return cudaErrorInvalidValue;
    device::Grid const grid{blocks, dim3(S::kThreads), 1, S::kSharedBytes};
    return device::launch(tiled_gemm_kernel<T, kByRows>, device::kInOrder, grid, stream, g,
                          tile_cols);
}

template <class T>
cudaError_t launch_tiled(Gemm const& g, cudaStream_t stream) {
    return g.transposed ? launch_tiled<T, false>(g, stream) : launch_tiled<T, true>(g, stream);
}

}  // namespace opfuse
