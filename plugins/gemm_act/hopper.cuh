// y = activation(x w + bias) + residual on Hopper: TMA, wgmma, warp specialisation, clusters.
#pragma once
#include <algorithm>

#include "../device/launch.cuh"
#include "cluster.cuh"
#include "epilogue.cuh"
#include "launch.h"
#include "products.cuh"
#include "tensor_map.h"

namespace opfuse {

// ---- kernels

// How a block's two warp groups of consumers share the work: half of each tile's rows each, or
// every other tile each.  By turns, one finishes its tile while the other multiplies.
enum class Sharing { kRows, kTurns };

// A tile is kRows by kCols; kCluster blocks share columns, and load a part each.
template <Sharing kSharing_, int kGroups_, int kCols_, int kStages_, int kCluster_>
struct GemmShape {
    static constexpr bool kTurns = kSharing_ == Sharing::kTurns;
    static constexpr int kGroups = kGroups_, kCols = kCols_, kStages = kStages_;
    static constexpr int kCluster = kCluster_;
    static constexpr int kThreads = 128 * (kGroups + 1);
    static constexpr int kHeights = kTurns ? 2 : 1;  // of 64 rows, of one group
    static constexpr int kRows = 64 * (kTurns ? kHeights : kGroups);
    static constexpr int kDepth = 64;  // of a stage: a row of a box
    static constexpr int kXBytes = kRows * device::kBoxBytes;
    static constexpr int kWeightBytes = kCols * device::kBoxBytes;
    static constexpr int kStageBytes = kXBytes + kWeightBytes;
    static constexpr int kReaders = kTurns ? 1 : kGroups;       // groups that read a stage
    static constexpr int kChunkBytes = 64 * device::kBoxBytes;  // of 64 rows by 64 columns of y
    static constexpr int kSharedBytes =
        kStages * kStageBytes + 2 * kGroups * kChunkBytes + 1024 + 256;
};

template <class S>
struct GemmBarriers {
    uint64_t full[S::kStages], empty[S::kStages];
    uint64_t residual[S::kGroups][2];  // two chunks of each group
};

// Tiles in bands of some rows, so that what runs at one time reads about as many rows as columns.
struct GemmOrder {
    int rows, cols;  // of tiles of a cluster
    int band;        // rows of tiles
};

struct GemmTile {
    int row, col;  // of elements
};

template <class S, bool kGated>
__device__ GemmTile gemm_tile(GemmOrder const& order, int index, int rank) {
    int const of_band = order.band * order.cols;
    int const band = index / of_band, inside = index % of_band;
    int const rows = min(order.band, order.rows - band * order.band);
    return {((band * order.band + inside % rows) * S::kCluster + rank) * S::kRows,
            inside / rows * (kGated ? S::kCols / 2 : S::kCols)};
}

// Calls `work` with this block's tiles, from `first` on each `stride`th.
template <class S, bool kGated, class Work>
__device__ void for_each_tile(GemmOrder const& order, int rank, int first, int stride, Work work) {
    int const clusters = gridDim.x / S::kCluster, own = blockIdx.x / S::kCluster;
    for (int i = own + first * clusters; i < order.rows * order.cols; i += stride * clusters)
        work(gemm_tile<S, kGated>(order, i, rank));
}

// This block's part of the weight's columns, for all blocks of the cluster.
template <class S, bool kByRows, bool kGated>
__device__ void load_weight(unsigned char* to, GemmMaps const& maps, uint64_t* barrier,
                            GemmTile const& tile, int k, int rank) {
    constexpr int kBox = kByRows ? 64 : S::kCols / 2;  // columns of a copy
    constexpr int kPart = S::kCols / kBox / S::kCluster;
    constexpr int kHalf = S::kCols / 2;
    constexpr uint16_t kAll = (1 << S::kCluster) - 1;
#pragma unroll
    for (int i = 0; i < kPart; ++i) {
        int const box = rank * kPart + i;
        bool const second = box * kBox >= kHalf;
        CUtensorMap const& map = kGated && second ? maps.up : maps.weight;
        int const col = tile.col + box * kBox - (kGated && second ? kHalf : 0);
        unsigned char* const at = to + box * kBox * device::kBoxBytes;
        int const x = kByRows ? col : k, y = kByRows ? k : col;
        if constexpr (S::kCluster > 1)
            device::copy_tile_to(kAll, at, map, barrier, x, y);
        else
            device::copy_tile(at, map, barrier, x, y);
    }
}

template <class S, bool kByRows, bool kGated>
__device__ void load_tiles(GemmMaps const& maps, GemmOrder const& order, GemmBarriers<S>& barriers,
                           unsigned char* stages, int steps, int rank) {
    int stage = 0;
    uint32_t parity = 1;
    for_each_tile<S, kGated>(order, rank, 0, 1, [&](GemmTile const& tile) {
        for (int step = 0; step < steps; ++step) {
            device::wait(&barriers.empty[stage], parity);
            uint64_t* const full = &barriers.full[stage];
            unsigned char* const x = stages + stage * S::kStageBytes;
            device::arrive_expecting(full, S::kStageBytes);
            device::copy_tile(x, maps.x, full, step * S::kDepth, tile.row);
            load_weight<S, kByRows, kGated>(x + S::kXBytes, maps, full, tile, step * S::kDepth,
                                            rank);
            if (++stage == S::kStages) stage = 0, parity ^= 1;
        }
    });
}

// A consumer: warp group `group` has 64 rows of each tile, or 128 of its own.
template <class T, class S, bool kByRows, bool kGated>
struct GemmConsumer {
    static constexpr int kBlocks = S::kCols / 8;  // of a row of sums
    static constexpr int kOutBlocks = kGated ? kBlocks / 2 : kBlocks;
    static constexpr int kAcross = kOutBlocks / 8, kChunks = S::kHeights * kAcross;
    using Sums = float[S::kHeights][kBlocks][4];
    static constexpr int kTurn =
        3;  // the first of two named barriers; those before are the groups'

    GemmMaps const& maps;
    Gemm const& g;
    GemmBarriers<S>& barriers;
    unsigned char* const chunks;  // two, of this group
    uint64_t x, weight;           // descriptions of boxes; of the first stage
    int const group, lane, warp;
    int const first_row;  // of the tile
    bool const leader;    // of the group's threads, the one that copies
    int stage = 0;
    uint32_t parity = 0, residual_parity = 0;

    __device__ GemmConsumer(GemmMaps const& maps, Gemm const& g, GemmBarriers<S>& barriers,
                            unsigned char* stages, int group)
        : maps(maps),
          g(g),
          barriers(barriers),
          chunks(stages + S::kStages * S::kStageBytes + group * 2 * S::kChunkBytes),
          weight(device::describe_box(device::shared_address(stages + S::kXBytes),
                                      S::kDepth * device::kBoxBytes)),
          group(group),
          lane(threadIdx.x % 32),
          warp(threadIdx.x / 32 % 4),
          first_row(S::kTurns ? 0 : group * 64),
          leader(threadIdx.x % 128 == 0) {
        x = device::describe_box(device::shared_address(stages + first_row * device::kBoxBytes), 0);
    }

    // Gated, there is none.
    __device__ bool has_residual() const { return !kGated && g.residual; }

    __device__ void release(int which) const {
        if constexpr (S::kCluster > 1) {
            if (lane < S::kCluster) device::arrive_in(&barriers.empty[which], lane);
        } else {
            if (lane == 0) device::arrive(&barriers.empty[which]);
        }
    }

    __device__ void pass(int steps) {
        int const next = stage + steps;
        parity ^= next / S::kStages & 1;
        stage = next % S::kStages;
    }

    // A group of products: those of a stage.
    __device__ void issue(Sums& sums, bool add) const {
        uint64_t const at = stage * (S::kStageBytes / 16);
#pragma unroll
        for (int i = 0; i < S::kDepth / 16; ++i)
#pragma unroll
            for (int h = 0; h < S::kHeights; ++h)
                device::multiply<T, kByRows>(
                    sums[h], x + at + h * 64 * device::kBoxBytes / 16 + i * 2,
                    weight + at + i * (kByRows ? device::kBoxBytes : 2), add || i > 0);
        device::commit_products();
    }

    // By turns, a group waits for its stages only when the other has all of its own: a barrier
    // tells one phase from the next, not from the one after it.
    __device__ void await_turn() const {
        if constexpr (S::kTurns) device::meet(kTurn + group, 256);
    }
    __device__ void end_turn() const {
        if constexpr (S::kTurns) device::arrive_to_meet(kTurn + 1 - group, 256);
    }

    __device__ void accumulate(Sums& sums, int steps) {
        int before = 0;
        await_turn();
        for (int step = 0; step < steps; ++step) {
            device::wait(&barriers.full[stage], parity);
            device::fence_products();
            issue(sums, step > 0);
            if (step > 0) {
                device::wait_for_products<1>();
                release(before);
            }
            before = stage;
            pass(1);
        }
        end_turn();
        device::wait_for_products<0>();
        release(before);
    }

    __device__ void fetch_residual(GemmTile const& tile, int chunk) {
        if (chunk >= kChunks) return;
        uint64_t* const barrier = &barriers.residual[group][chunk % 2];
        device::arrive_expecting(barrier, S::kChunkBytes);
        device::copy_tile(chunks + chunk % 2 * S::kChunkBytes, maps.residual, barrier,
                          chunk_col(tile, chunk), chunk_row(tile, chunk));
    }

    __device__ int chunk_row(GemmTile const& tile, int chunk) const {
        return tile.row + first_row + chunk / kAcross * 64;
    }
    __device__ static int chunk_col(GemmTile const& tile, int chunk) {
        return tile.col + chunk % kAcross * 64;
    }

    // The pairs of columns of `bias` that this thread has, two of zeros where there are none.
    __device__ void load_bias(uint32_t (&pairs)[kBlocks], GemmTile const& tile) const {
#pragma unroll
        for (int j = 0; j < kBlocks; ++j) {
            int col = tile.col + j * 8 + lane % 4 * 2;
            bool inside = col < g.cols;
            if constexpr (kGated)
                if (j >= kOutBlocks) col += g.cols - S::kCols / 2, inside = col < 2 * g.cols;
            pairs[j] =
                g.bias && inside
                    ? __ldg(reinterpret_cast<uint32_t const*>(static_cast<T const*>(g.bias) + col))
                    : 0;
        }
    }

    template <device::Activation kActivation>
    __device__ void finish(Sums& sums, uint32_t const (&bias)[kBlocks], GemmTile const& tile) {
#pragma unroll
        for (int chunk = 0; chunk < kChunks; ++chunk) {
            float (&row_sums)[kBlocks][4] = sums[chunk / kAcross];
            unsigned char* const buffer = chunks + chunk % 2 * S::kChunkBytes;
            if (has_residual()) {
                device::wait(&barriers.residual[group][chunk % 2], residual_parity);
                if (chunk % 2 == 1) residual_parity ^= 1;
            } else {
                if (leader) device::wait_for_stores<1>();
                device::meet(1 + group, 128);
            }
            // Lane i addresses row i % 16 of the warp's, and of a pair of blocks the i / 16 th.
            int const row = warp * 16 + lane % 16;
            uint32_t const row_at = device::shared_address(buffer) + row * device::kBoxBytes;
#pragma unroll
            for (int j = 0; j < 8; j += 2) {
                uint32_t const at = row_at + ((j + lane / 16) ^ row % 8) * 16;
                uint32_t added[4] = {};
                if (has_residual()) device::load_matrices_at(added, at);
                uint32_t out[4];
#pragma unroll
                for (int r = 0; r < 2; ++r) {  // rows lane / 4 + 8 r
                    float four[4];
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        int const block = chunk % kAcross * 8 + j + i / 2;
                        float2 const b = device::unpack<T>(bias[block]);
                        four[i] = row_sums[block][r * 2 + i % 2] + (i % 2 ? b.y : b.x);
                    }
                    device::activate_four<kActivation>(four);
                    if constexpr (kGated)
#pragma unroll
                        for (int i = 0; i < 4; ++i) {
                            int const block = chunk % kAcross * 8 + j + i / 2 + kOutBlocks;
                            float2 const b = device::unpack<T>(bias[block]);
                            four[i] *= row_sums[block][r * 2 + i % 2] + (i % 2 ? b.y : b.x);
                        }
                    if (has_residual())
#pragma unroll
                        for (int i = 0; i < 4; ++i) {
                            float2 const more = device::unpack<T>(added[r + i / 2 * 2]);
                            four[i] += i % 2 ? more.y : more.x;
                        }
                    out[r] = device::pack<T>(four[0], four[1]);
                    out[r + 2] = device::pack<T>(four[2], four[3]);
                }
                device::store_matrices(at, out);
            }
            device::publish_to_copies();
            device::meet(1 + group, 128);
            if (leader) {
                device::store_tile(maps.y, buffer, chunk_col(tile, chunk), chunk_row(tile, chunk));
                device::commit_stores();
                if (has_residual() && chunk + 2 < kChunks) {
                    device::wait_for_stores<0>();
                    fetch_residual(tile, chunk + 2);
                }
            }
        }
    }

    __device__ void multiply(GemmTile const& tile, int steps) {
        Sums sums;
        uint32_t bias[kBlocks];
        if (has_residual() && leader) {
            device::wait_for_stores<0>();
            fetch_residual(tile, 0);
            fetch_residual(tile, 1);
        }
        load_bias(bias, tile);
        accumulate(sums, steps);
        using enum device::Activation;
        switch (g.activation) {
        case kNone: return finish<kNone>(sums, bias, tile);
        case kRelu: return finish<kRelu>(sums, bias, tile);
        case kGelu: return finish<kGelu>(sums, bias, tile);
        case kGeluTanh: return finish<kGeluTanh>(sums, bias, tile);
        case kQuickGelu: return finish<kQuickGelu>(sums, bias, tile);
        case kSilu: return finish<kSilu>(sums, bias, tile);
        }
    }
};

template <class T, class S, bool kByRows, bool kGated>
__global__ void __launch_bounds__(S::kThreads, 1)
    hopper_gemm_kernel(Gemm const g, GemmOrder const order, __grid_constant__ GemmMaps const maps) {
    extern __shared__ __align__(16) unsigned char shared[];
    unsigned char* const stages = shared + (1024 - device::shared_address(shared) % 1024) % 1024;
    auto& barriers = *reinterpret_cast<GemmBarriers<S>*>(stages + S::kStages * S::kStageBytes +
                                                         2 * S::kGroups * S::kChunkBytes);
    if (threadIdx.x == 0) {
        for (int i = 0; i < S::kStages; ++i) {
            device::init_barrier(&barriers.full[i], 1);
            device::init_barrier(&barriers.empty[i], 4 * S::kReaders * S::kCluster);
        }
        for (auto& of_group : barriers.residual)
            for (auto& barrier : of_group) device::init_barrier(&barrier, 1);
        device::publish_barriers();
    }
    if constexpr (S::kCluster > 1)
        device::meet_cluster();
    else
        __syncthreads();
    device::let_next_start();
    device::wait_for_previous();
    int const steps = (g.depth + S::kDepth - 1) / S::kDepth;
    int const rank = S::kCluster > 1 ? device::cluster_rank() : 0;
    // Shuffled, so that the compiler knows that a warp's threads agree on it.
    int const group = __shfl_sync(0xffffffff, static_cast<int>(threadIdx.x / 128), 0) - 1;
    if (group < 0) {
        device::leave_registers<24>();
        if (threadIdx.x == 0)
            load_tiles<S, kByRows, kGated>(maps, order, barriers, stages, steps, rank);
    } else {
        device::take_registers<240>();
        GemmConsumer<T, S, kByRows, kGated> consumer(maps, g, barriers, stages, group);
        if (S::kTurns && group == 1) {
            consumer.end_turn();  // group 0 begins
            consumer.pass(steps);
        }
        for_each_tile<S, kGated>(order, rank, S::kTurns ? group : 0, S::kTurns ? 2 : 1,
                                 [&](GemmTile const& tile) {
                                     consumer.multiply(tile, steps);
                                     if (S::kTurns) consumer.pass(steps);
                                 });
        if (consumer.leader) device::wait_for_stores<0>();
    }
    if constexpr (S::kCluster > 1) device::meet_cluster();  // no block ends while others tell it
}

// ---- launchers

template <class T, class S, bool kByRows, bool kGated>
cudaError_t launch_hopper_gemm(Gemm const& g, int band, cudaStream_t stream) {
    device::Machine machine;
    if (cudaError_t const status = device::current_machine(machine)) return status;
    GemmMaps maps;
    if (!map_gemm(maps, g, std::is_same_v<T, __half>, S::kRows, kByRows ? 64 : S::kCols / 2))
        return cudaErrorNotSupported;
    int constexpr kOutCols = kGated ? S::kCols / 2 : S::kCols;
    int constexpr kClusterRows = S::kRows * S::kCluster;
    GemmOrder const order{static_cast<int>((g.rows + kClusterRows - 1) / kClusterRows),
                          (g.cols + kOutCols - 1) / kOutCols, band};
    device::Grid grid;
    grid.blocks =
        std::min<int64_t>(machine.multiprocessors / S::kCluster, int64_t{order.rows} * order.cols) *
        S::kCluster;
    grid.threads = dim3(S::kThreads);
    grid.cluster = S::kCluster;
    grid.shared_bytes = S::kSharedBytes;
    return device::launch(hopper_gemm_kernel<T, S, kByRows, kGated>, machine, grid, stream, g,
                          order, maps);
}

}  // namespace opfuse
