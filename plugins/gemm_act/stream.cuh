// y = activation(x w + bias) + residual on Hopper for few rows: the weight streams through.
//
// The blocks of a cluster have one tile of y and each a part of the depth; they add their sums in
// the order of their ranks, so that results do not depend on what came first.
#pragma once
#include "hopper.cuh"

namespace opfuse {

// ---- kernels

inline constexpr int kMostParts =
    8;  // of the depth: blocks of a cluster, of which more are not portable

template <int kCols_, int kStages_>
struct StreamShape {
    static constexpr int kCols = kCols_, kStages = kStages_, kGroups = 1, kCluster = 1;
    static constexpr int kThreads = 256;
    static constexpr int kRows = 64, kDepth = 64;
    static constexpr int kXBytes = kRows * device::kBoxBytes;
    static constexpr int kWeightBytes = kCols * device::kBoxBytes;
    static constexpr int kStageBytes = kXBytes + kWeightBytes;
    static constexpr int kSharedBytes = kStages * kStageBytes + 1024 + 256;
    static constexpr int kSumStride = kCols + 8;  // floats of a row of sums, which take the stages
    static_assert(kRows * kSumStride * 4 <= kStages * kStageBytes);
};

template <class S>
struct StreamBarriers {
    uint64_t full[S::kStages], empty[S::kStages];
};

// The sum over the cluster's blocks of four neighbours.
__device__ inline void add_sums(float (&total)[4], float const* mine, int size) {
    uint32_t const at = device::shared_address(mine);
    float4 parts[kMostParts];
#pragma unroll
    for (int rank = 0; rank < kMostParts; ++rank)
        if (rank < size) parts[rank] = device::load_from(device::address_in(at, rank));
#pragma unroll
    for (int rank = 0; rank < kMostParts; ++rank)
        if (rank < size) {
            total[0] += parts[rank].x, total[1] += parts[rank].y;
            total[2] += parts[rank].z, total[3] += parts[rank].w;
        }
}

template <class T>
__device__ void add_four(float (&to)[4], void const* from, int64_t at) {
    uint2 const four = *reinterpret_cast<uint2 const*>(static_cast<T const*>(from) + at);
    float2 const low = device::unpack<T>(four.x), high = device::unpack<T>(four.y);
    to[0] += low.x, to[1] += low.y, to[2] += high.x, to[3] += high.y;
}

// Finishes four neighbouring columns of a row, which begin at `inside` of the tile.
template <class T, class S, bool kGated>
__device__ void store_four(Gemm const& g, float const* sums, GemmTile const& tile, int row,
                           int inside, int size) {
    int const col = tile.col + inside;
    if (col >= g.cols) return;  // cols is a multiple of 8
    int64_t const at = (tile.row + row) * int64_t{g.cols} + col;
    float const* const mine = sums + row * S::kSumStride + inside;
    float y[4] = {};
    if (g.bias) add_four<T>(y, g.bias, col);
    add_sums(y, mine, size);
    device::activate_as(g.activation, y);
    if constexpr (kGated) {
        float up[4] = {};
        if (g.bias) add_four<T>(up, g.bias, g.cols + col);
        add_sums(up, mine + S::kCols / 2, size);
#pragma unroll
        for (int i = 0; i < 4; ++i) y[i] *= up[i];
    }
    if (g.residual) add_four<T>(y, g.residual, at);
    uint2 const packed{device::pack<T>(y[0], y[1]), device::pack<T>(y[2], y[3])};
    *reinterpret_cast<uint2*>(static_cast<T*>(g.y) + at) = packed;
}

// Asks for the first of what load_weight will load; allowed ahead of wait_for_previous.
template <class S, bool kByRows, bool kGated>
__device__ void prefetch_weight(GemmMaps const& maps, GemmTile const& tile, int begin, int end) {
    constexpr int kBox = kByRows ? 64 : S::kCols / 2, kHalf = S::kCols / 2;
    for (int step = begin; step < min(end, begin + S::kStages); ++step)
#pragma unroll
        for (int col = 0; col < S::kCols; col += kBox) {
            bool const second = kGated && col >= kHalf;
            int const at = tile.col + col - (second ? kHalf : 0), k = step * S::kDepth;
            device::prefetch_tile(second ? maps.up : maps.weight, kByRows ? at : k,
                                  kByRows ? k : at);
        }
}

template <class T, class S, bool kByRows, bool kGated>
__global__ void __launch_bounds__(S::kThreads)
    stream_kernel(Gemm const g, int tile_rows, __grid_constant__ GemmMaps const maps) {
    extern __shared__ __align__(16) unsigned char shared[];
    unsigned char* const stages = shared + (1024 - device::shared_address(shared) % 1024) % 1024;
    auto& barriers = *reinterpret_cast<StreamBarriers<S>*>(stages + S::kStages * S::kStageBytes);
    if (threadIdx.x == 0) {
        for (int i = 0; i < S::kStages; ++i) {
            device::init_barrier(&barriers.full[i], 1);
            device::init_barrier(&barriers.empty[i], 4);
        }
        device::publish_barriers();
    }
    __syncthreads();
    int const rank = device::cluster_rank(), size = device::cluster_size();
    int const index = blockIdx.x / size;
    constexpr int kOutCols = kGated ? S::kCols / 2 : S::kCols;
    GemmTile const tile{index % tile_rows * S::kRows, index / tile_rows * kOutCols};
    int const all = (g.depth + S::kDepth - 1) / S::kDepth;
    int const begin = static_cast<int>(int64_t{all} * rank / size);
    int const end = static_cast<int>(int64_t{all} * (rank + 1) / size);
    device::let_next_start();
    if (threadIdx.x == 0) prefetch_weight<S, kByRows, kGated>(maps, tile, begin, end);
    device::wait_for_previous();
    float* const sums = reinterpret_cast<float*>(stages);
    if (threadIdx.x < 128) {
        if (threadIdx.x == 0)
            for (int step = begin; step < end; ++step) {
                int const i = step - begin, stage = i % S::kStages;
                device::wait(&barriers.empty[stage], ~(i / S::kStages) & 1);
                unsigned char* const x = stages + stage * S::kStageBytes;
                device::arrive_expecting(&barriers.full[stage], S::kStageBytes);
                load_weight<S, kByRows, kGated>(x + S::kXBytes, maps, &barriers.full[stage], tile,
                                                step * S::kDepth, 0);
                device::copy_tile(x, maps.x, &barriers.full[stage], step * S::kDepth, tile.row);
            }
    } else {
        int const lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
        float d[S::kCols / 8][4] = {};
        uint64_t const x = device::describe_box(device::shared_address(stages), 0);
        uint64_t const weight = device::describe_box(device::shared_address(stages + S::kXBytes),
                                                     S::kDepth * device::kBoxBytes);
        for (int step = begin; step < end; ++step) {
            int const i = step - begin, stage = i % S::kStages;
            device::wait(&barriers.full[stage], i / S::kStages & 1);
            device::fence_products();
            uint64_t const at = stage * (S::kStageBytes / 16);
#pragma unroll
            for (int k = 0; k < S::kDepth / 16; ++k)
                device::multiply<T, kByRows>(
                    d, x + at + k * 2, weight + at + k * (kByRows ? device::kBoxBytes : 2), true);
            device::commit_products();
            device::wait_for_products<0>();
            if (lane == 0) device::arrive(&barriers.empty[stage]);
        }
        device::meet(1, 128);  // all have read the stages
        float* const row = sums + (warp * 16 + lane / 4) * S::kSumStride + lane % 4 * 2;
#pragma unroll
        for (int j = 0; j < S::kCols / 8; ++j) {
            *reinterpret_cast<float2*>(row + 8 * j) = {d[j][0], d[j][1]};
            *reinterpret_cast<float2*>(row + 8 * j + 8 * S::kSumStride) = {d[j][2], d[j][3]};
        }
    }
    __syncthreads();
    device::meet_cluster();
    int const fours = kOutCols / 4 / size, rows = min(int64_t{S::kRows}, g.rows - tile.row);
    for (int i = threadIdx.x; i < rows * fours; i += S::kThreads)
        store_four<T, S, kGated>(g, sums, tile, i / fours, (rank * fours + i % fours) * 4, size);
    device::meet_cluster();  // no block ends while others read its sums
}

// ---- launchers

template <class T, class S, bool kByRows, bool kGated>
cudaError_t launch_stream(Gemm const& g, int split, cudaStream_t stream) {
    device::Machine machine;
    if (cudaError_t const status = device::current_machine(machine)) return status;
    GemmMaps maps;
    if (!map_gemm(maps, g, std::is_same_v<T, __half>, S::kRows, kByRows ? 64 : S::kCols / 2))
        return cudaErrorNotSupported;
    int constexpr kOutCols = kGated ? S::kCols / 2 : S::kCols;
    int const tile_rows = static_cast<int>((g.rows + S::kRows - 1) / S::kRows);
    device::Grid grid;
    grid.blocks = int64_t{tile_rows} * ((g.cols + kOutCols - 1) / kOutCols) * split;
    grid.threads = dim3(S::kThreads);
    grid.cluster = split;
    grid.shared_bytes = S::kSharedBytes;
    return device::launch(stream_kernel<T, S, kByRows, kGated>, machine, grid, stream, g, tile_rows,
                          maps);
}

}  // namespace opfuse
