// y = activation(x w + bias) + residual of so few rows that reading w is all of the work: sm_90.
//
// A cluster of eight blocks has a tile of 128 columns (gated, 64 of the gate and the 64 of what it
// lets through), each block an eighth of the depth; the sums meet in shared memory.  A thread reads
// 8 columns of every 16th row of its part, sixteen reads at once, which brings what the memory
// gives. Ahead of the wait for the previous kernel the part is asked into L2.
#pragma once
#include "../device/launch.cuh"
#include "cluster.cuh"
#include "epilogue.cuh"
#include "launch.h"

namespace opfuse {

// ---- kernels

struct FewRows {
    static constexpr int kMost = 4;  // rows
    static constexpr int kThreads = 256, kWarps = kThreads / 32;
    static constexpr int kTile = 128, kVec = 8;
    static constexpr int kLanes = kTile / kVec, kGroups = kThreads / kLanes;
    static constexpr int kParts = 8;  // of the depth: the blocks of a cluster
    template <int kRows>              // reads of a thread at once
    static constexpr int kAtOnce = kRows == 1 ? 16 : 8;
    static constexpr int kEarly = 128;  // rows of the part that are asked into L2
    static constexpr int kMostShared = 96 << 10;
};

__device__ inline void meet_in_cluster() {  // with what ordinary stores wrote
    asm volatile("barrier.cluster.arrive.release;" ::: "memory");
    device::wait_for_cluster();
}

__device__ inline float load_from(float const* here, int rank) {
    float value;
    asm volatile("ld.shared::cluster.f32 %0, [%1];"
                 : "=f"(value)
                 : "r"(device::address_in(device::shared_address(here), rank))
                 : "memory");
    return value;
}

// The sum of all parts for one column of the tile and one row, always in the same order.
template <int kRows>
__device__ float whole_sum(float const (&part)[kRows][FewRows::kTile], int row, int at) {
    float found[FewRows::kParts], sum = 0.f;
#pragma unroll
    for (int rank = 0; rank < FewRows::kParts; ++rank)
        found[rank] = load_from(&part[row][at], rank);
#pragma unroll
    for (int rank = 0; rank < FewRows::kParts; ++rank) sum += found[rank];
    return sum;
}

template <class T>
__device__ void store_result(Gemm const& g, float value, float up, int64_t row, int64_t col) {
    T const* const bias = static_cast<T const*>(g.bias);
    T const* const residual = static_cast<T const*>(g.residual);
    if (bias) value += device::to_float(bias[col]);
    value = device::activate_as(g.activation, value);
    if (g.gated) value *= bias ? up + device::to_float(bias[g.cols + col]) : up;
    if (residual) value += device::to_float(residual[row * g.cols + col]);
    static_cast<T*>(g.y)[row * g.cols + col] = device::from_float<T>(value);
}

// sums += x w of the rows of w from `weight` on that this thread's group has.  x is 0 from `count`
// on.
template <class T, int kRows>
__device__ void multiply_part(float (&sums)[kRows][8], float const* x, int x_stride,
                              T const* weight, int64_t stride, int count, int group) {
    using S = FewRows;
    int constexpr kAtOnce = S::kAtOnce<kRows>;
    for (int first = group; first < count; first += S::kGroups * kAtOnce) {
        uint4 read[kAtOnce];
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
            int const k = first + i * S::kGroups;
            T const* const from = weight + k * stride;
            read[i] = k < count ? __ldcs(reinterpret_cast<uint4 const*>(from)) : uint4{};
        }
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
            uint32_t const pairs[4] = {read[i].x, read[i].y, read[i].z, read[i].w};
#pragma unroll
            for (int row = 0; row < kRows; ++row) {
                float const factor = x[row * x_stride + first + i * S::kGroups];
#pragma unroll
                for (int c = 0; c < 4; ++c) {
                    float2 const two = device::unpack<T>(pairs[c]);
                    sums[row][2 * c] = fmaf(factor, two.x, sums[row][2 * c]);
                    sums[row][2 * c + 1] = fmaf(factor, two.y, sums[row][2 * c + 1]);
                }
            }
        }
    }
}

template <class T, int kRows, bool kGated>
__global__ void __launch_bounds__(FewRows::kThreads, 2)
    few_rows_gemm_kernel(Gemm const g, int const slice, int const x_stride) {
    using S = FewRows;
    extern __shared__ float x_part[];  // [kRows, x_stride]
    __shared__ float of_warp[S::kWarps][kRows][S::kTile], of_block[kRows][S::kTile];
    int constexpr kCols = kGated ? S::kTile / 2 : S::kTile;
    int const rank = device::cluster_rank(), tile_col = blockIdx.x / S::kParts * kCols;
    int const lane = threadIdx.x % S::kLanes, group = threadIdx.x / S::kLanes;
    int const inside = lane * S::kVec % kCols;
    int64_t const stride = kGated ? 2 * int64_t{g.cols} : g.cols;
    int const first = min(rank * slice, g.depth), count = min(slice, g.depth - first);
    bool const has_col = tile_col + inside < g.cols;
    T const* const weight = static_cast<T const*>(g.weight) + first * stride + tile_col + inside +
                            (lane * S::kVec >= kCols ? g.cols : 0);
    if (has_col && lane % 8 == 0)
        for (int k = group; k < min(count, S::kEarly); k += S::kGroups)
            device::prefetch(weight + k * stride);
    device::let_next_start();
    device::wait_for_previous();
    T const* const x = static_cast<T const*>(g.x) + first;
    for (int i = threadIdx.x; i < kRows * x_stride; i += S::kThreads) {
        int const row = i / x_stride, k = i % x_stride;
        bool const there = row < g.rows && k < count;
        x_part[i] = there ? device::to_float(x[row * int64_t{g.depth} + k]) : 0.f;
    }
    __syncthreads();
    float sums[kRows][8] = {};
    multiply_part<T, kRows>(sums, x_part, x_stride, weight, stride, has_col ? count : 0, group);
    int const warp = threadIdx.x / 32;
#pragma unroll
    for (int row = 0; row < kRows; ++row)
#pragma unroll
        for (int c = 0; c < 8; ++c) {
            float const sum = sums[row][c] + __shfl_xor_sync(0xffffffff, sums[row][c], S::kLanes);
            if (threadIdx.x % 32 < S::kLanes) of_warp[warp][row][lane * S::kVec + c] = sum;
        }
    __syncthreads();
    for (int i = threadIdx.x; i < kRows * S::kTile; i += S::kThreads) {
        float sum = 0.f;
#pragma unroll
        for (int w = 0; w < S::kWarps; ++w) sum += of_warp[w][i / S::kTile][i % S::kTile];
        of_block[i / S::kTile][i % S::kTile] = sum;
    }
    meet_in_cluster();
    int constexpr kOwn = kCols / S::kParts;
    int const row = threadIdx.x / kOwn, at = rank * kOwn + threadIdx.x % kOwn;
    if (row < kRows && row < g.rows && tile_col + at < g.cols) {
        float const value = whole_sum<kRows>(of_block, row, at);
        float const up = kGated ? whole_sum<kRows>(of_block, row, at + S::kTile / 2) : 0.f;
        store_result<T>(g, value, up, row, tile_col + at);
    }
    meet_in_cluster();  // no block ends while others read its sums
}

// ---- launchers

template <class T, int kRows, bool kGated>
cudaError_t launch_few_rows(Gemm const& g, cudaStream_t stream) {
    using S = FewRows;
    device::Machine machine;
    if (cudaError_t const status = device::current_machine(machine)) return status;
    int constexpr kCols = kGated ? S::kTile / 2 : S::kTile;
    int const slice = (g.depth + S::kParts - 1) / S::kParts;
    int constexpr kStep = S::kGroups * S::kAtOnce<kRows>;
    int const x_stride = (slice + kStep - 1) / kStep * kStep;
    device::Grid grid;
    grid.cluster = S::kParts;
    grid.blocks = (int64_t{g.cols} + kCols - 1) / kCols * S::kParts;
    grid.threads = dim3(S::kThreads);
    grid.shared_bytes = sizeof(float) * kRows * x_stride;
    if (grid.shared_bytes > S::kMostShared) return cudaErrorNotSupported;
    return device::launch(few_rows_gemm_kernel<T, kRows, kGated>, machine, grid, stream, g, slice,
                          x_stride);
}

template <class T, bool kGated>
cudaError_t launch_few_rows(Gemm const& g, cudaStream_t stream) {
    if (g.rows == 1) return launch_few_rows<T, 1, kGated>(g, stream);
    return g.rows == 2 ? launch_few_rows<T, 2, kGated>(g, stream)
                       : launch_few_rows<T, 4, kGated>(g, stream);
}

template <class T>
cudaError_t launch_few_rows(Gemm const& g, cudaStream_t stream) {
    if (g.rows > FewRows::kMost || g.transposed) return cudaErrorNotSupported;
    return g.gated ? launch_few_rows<T, true>(g, stream) : launch_few_rows<T, false>(g, stream);
}

}  // namespace opfuse
