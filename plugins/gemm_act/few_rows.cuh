// y = activation(x w + bias) + residual of so few rows that reading w is all of the work: sm_90.
//
// A cluster of up to eight blocks has a tile of 64 columns (gated, 64 of the gate and the 64 of
// what it lets through), each block its part of the depth; the sums meet in shared memory.  A
// thread has 8 columns, and reads ahead of what it multiplies.  Ahead of the wait for the previous
// kernel the part is asked into L2.
#pragma once
#include "../device/launch.cuh"
#include "cluster.cuh"
#include "epilogue.cuh"
#include "launch.h"

namespace opfuse {

// ---- kernels

template <bool kGated>
struct FewRows {
    static constexpr int kMost = 4;  // rows
    static constexpr int kThreads = 256, kWarps = kThreads / 32,
                         kBlocks = 3;  // of a multiprocessor
    static constexpr int kVec = 8, kCols = 64, kTile = kGated ? 2 * kCols : kCols;
    static constexpr int kLanes = kTile / kVec, kGroups = kThreads / kLanes;
    static constexpr int kMostParts = 8;  // of the depth: the blocks of a cluster
    static constexpr int kAtOnce = 4;     // reads of a thread, of which two such lots are under way
    static constexpr int kStep = kGroups * kAtOnce;  // rows of w
    static constexpr int kEarly = 128;               // rows of the part that are asked into L2
    static constexpr int kMostShared = 48 << 10;
};

// How the depth is shared out: the blocks of a cluster, the rows of each, and of those that it
// keeps of x, a multiple of kStep.
struct DepthParts {
    int parts, rows, kept;
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

// The sum of all parts of what lies at `here`, always in the same order.
__device__ inline float whole_sum(float const* here, int parts) {
    float found[8], sum = 0.f;
#pragma unroll
    for (int rank = 0; rank < 8; ++rank) found[rank] = rank < parts ? load_from(here, rank) : 0.f;
#pragma unroll
    for (int rank = 0; rank < 8; ++rank) sum += found[rank];
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

// kAtOnce vectors of w, kGroups rows apart, the first at row k; 0 from `count` on.
template <class S, class T>
__device__ void read_lot(uint4 (&lot)[S::kAtOnce], T const* weight, int64_t stride, int k,
                         int count) {
#pragma unroll
    for (int i = 0; i < S::kAtOnce; ++i) {
        int const row = k + i * S::kGroups;
        T const* const from = weight + row * stride;
        lot[i] = row < count ? __ldcs(reinterpret_cast<uint4 const*>(from)) : uint4{};
    }
}

template <class S, class T, int kRows>
__device__ void multiply_lot(float (&sums)[kRows][8], uint4 const (&lot)[S::kAtOnce],
                             float const* x, int x_stride) {
#pragma unroll
    for (int i = 0; i < S::kAtOnce; ++i) {
        uint32_t const pairs[4] = {lot[i].x, lot[i].y, lot[i].z, lot[i].w};
#pragma unroll
        for (int row = 0; row < kRows; ++row) {
            float const factor = x[row * x_stride + i * S::kGroups];
#pragma unroll
            for (int c = 0; c < 4; ++c) {
                float2 const two = device::unpack<T>(pairs[c]);
                sums[row][2 * c] = fmaf(factor, two.x, sums[row][2 * c]);
                sums[row][2 * c + 1] = fmaf(factor, two.y, sums[row][2 * c + 1]);
            }
        }
    }
}

template <class T, int kRows, bool kGated>
__global__ void __launch_bounds__(FewRows<kGated>::kThreads, FewRows<kGated>::kBlocks)
    few_rows_gemm_kernel(Gemm const g, DepthParts const depth) {
    using S = FewRows<kGated>;
    extern __shared__ float x_part[];  // [kRows, depth.kept]
    __shared__ float of_warp[S::kWarps][kRows * S::kTile], of_block[kRows * S::kTile];
    int const rank = blockIdx.x % depth.parts, tile_col = blockIdx.x / depth.parts * S::kCols;
    int const lane = threadIdx.x % S::kLanes, group = threadIdx.x / S::kLanes;
    int const inside = lane * S::kVec % S::kCols;
    int64_t const stride = kGated ? 2 * int64_t{g.cols} : g.cols;
    int const first = min(rank * depth.rows, g.depth);
    int const there = min(depth.rows, g.depth - first);
    bool const has_col = tile_col + inside < g.cols;
    int const count = has_col ? there : 0;
    T const* const weight = static_cast<T const*>(g.weight) + first * stride + tile_col + inside +
                            (lane * S::kVec >= S::kCols ? g.cols : 0);
    if (lane % 8 == 0)
        for (int k = group; k < min(count, S::kEarly); k += S::kGroups)
            device::prefetch(weight + k * stride);
    device::let_next_start();
    device::wait_for_previous();
    uint4 lot[S::kAtOnce], next[S::kAtOnce];
    read_lot<S>(lot, weight, stride, group, count);
    T const* const x = static_cast<T const*>(g.x) + first;
    for (int i = threadIdx.x; i < kRows * depth.kept; i += S::kThreads) {
        int const row = i / depth.kept, k = i % depth.kept;
        bool const is_there = row < g.rows && k < there;
        x_part[i] = is_there ? device::to_float(x[row * int64_t{g.depth} + k]) : 0.f;
    }
    __syncthreads();
    float sums[kRows][8] = {};
    for (int k = group; k < count; k += S::kStep) {
        read_lot<S>(next, weight, stride, k + S::kStep, count);
        multiply_lot<S, T, kRows>(sums, lot, x_part + k, depth.kept);
#pragma unroll
        for (int i = 0; i < S::kAtOnce; ++i) lot[i] = next[i];
    }
#pragma unroll
    for (int row = 0; row < kRows; ++row)
#pragma unroll
        for (int c = 0; c < 8; ++c) {
            float sum = sums[row][c];
#pragma unroll
            for (int apart = S::kLanes; apart < 32; apart *= 2)
                sum += __shfl_xor_sync(0xffffffff, sum, apart);
            if (threadIdx.x % 32 < S::kLanes)
                of_warp[threadIdx.x / 32][row * S::kTile + lane * S::kVec + c] = sum;
        }
    __syncthreads();
    for (int i = threadIdx.x; i < kRows * S::kTile; i += S::kThreads) {
        float sum = 0.f;
#pragma unroll
        for (int warp = 0; warp < S::kWarps; ++warp) sum += of_warp[warp][i];
        of_block[i] = sum;
    }
    meet_in_cluster();
    int const own = S::kCols / depth.parts;
    for (int i = threadIdx.x; i < kRows * own; i += S::kThreads) {
        int const row = i / own, at = rank * own + i % own;
        if (row >= g.rows || tile_col + at >= g.cols) continue;
        float const* const here = of_block + row * S::kTile + at;
        float const up = kGated ? whole_sum(here + S::kCols, depth.parts) : 0.f;
        store_result<T>(g, whole_sum(here, depth.parts), up, row, tile_col + at);
    }
    meet_in_cluster();  // no block ends while others read its sums
}

// ---- launchers

template <class T, int kRows, bool kGated>
cudaError_t launch_few_rows(Gemm const& g, cudaStream_t stream) {
    using S = FewRows<kGated>;
    device::Machine machine;
    if (cudaError_t const status = device::current_machine(machine)) return status;
    int64_t const tiles = (int64_t{g.cols} + S::kCols - 1) / S::kCols;
    // Two blocks on most multiprocessors, each with its part of a tile: with fewer or more of them
    // the other kernel is as fast (1 x 2048 x 3072 on an H100: 384 blocks take 10.5 us, it 7.1; but
    // 1 x 8192 x 2048: 256 blocks take 14.6 us, it 19.7).
    int64_t const most = 2 * int64_t{machine.multiprocessors};
    int parts = S::kMostParts;
    while (parts > 1 && tiles * parts > most) parts /= 2;
    if (parts == 1 || 4 * tiles * parts < 3 * most) return cudaErrorNotSupported;
    // Gates of so many columns have a way of their own: 1 x 2048 x 8192 takes 24.1 us, here 27.0.
    if (kGated && 8 * tiles >= 3 * most) return cudaErrorNotSupported;
    int const rows = (g.depth + parts - 1) / parts;
    DepthParts const depth{parts, rows, (rows + S::kStep - 1) / S::kStep * S::kStep};
    device::Grid grid;
    grid.cluster = parts;
    grid.blocks = tiles * parts;
    grid.threads = dim3(S::kThreads);
    grid.shared_bytes = sizeof(float) * kRows * depth.kept;
    if (grid.shared_bytes > S::kMostShared) return cudaErrorNotSupported;
    return device::launch(few_rows_gemm_kernel<T, kRows, kGated>, machine, grid, stream, g, depth);
}

template <class T, bool kGated>
cudaError_t launch_few_rows(Gemm const& g, cudaStream_t stream) {
    if (g.rows == 1) return launch_few_rows<T, 1, kGated>(g, stream);
    return g.rows == 2 ? launch_few_rows<T, 2, kGated>(g, stream)
                       : launch_few_rows<T, 4, kGated>(g, stream);
}

template <class T>
cudaError_t launch_few_rows(Gemm const& g, cudaStream_t stream) {
    if (g.rows > FewRows<true>::kMost || g.transposed) return cudaErrorNotSupported;
    return g.gated ? launch_few_rows<T, true>(g, stream) : launch_few_rows<T, false>(g, stream);
}

}  // namespace opfuse
