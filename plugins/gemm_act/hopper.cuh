// y = activation(x w + bias) + residual on Hopper: TMA, wgmma, warp specialisation, clusters.
//
// A block stays on its multiprocessor and takes tiles of y.  One warp asks the copy engine for
// stages of x and of the weight; the other warp groups multiply them, and finish the tile while the
// next one's first stages come in.
#pragma once
#include <algorithm>

#include "../device/launch.cuh"
#include "finish.cuh"
#include "launch.h"
#include "load.cuh"
#include "products.cuh"

namespace opfuse {

// ---- kernels

// A consumer: warp group `group` has 64 rows of each tile, or 128 of its own.
template <class T, class S, bool kByRows, bool kGated>
struct GemmConsumer {
    static constexpr int kBlocks = S::kCols / 8, kOwnBlocks = kBlocks / S::kParts;
    static constexpr int kTurn =
        3;  // the first of two named barriers; those before are the groups'
    using Sums = float[S::kHeights][kBlocks][4];
    using OwnSums = float[S::kHeights][kOwnBlocks][4];

    GemmBarriers<S>& barriers;
    GemmFinish<T, S, kGated, kOwnBlocks> finish;
    unsigned char* const exchanged;
    uint64_t x, weight;  // descriptions of boxes; of the first stage
    int const group, rank, first_row;
    int stage = 0;
    uint32_t parity = 0;

    __device__ GemmConsumer(GemmMaps const& maps, Gemm const& g, GemmBarriers<S>& barriers,
                            unsigned char* stages, int group, int rank)
        : barriers(barriers),
          finish{maps,
                 g,
                 barriers.residual[group],
                 stages + S::kChunks + group * 2 * S::kChunkBytes,
                 group,
                 static_cast<int>(threadIdx.x % 32),
                 static_cast<int>(threadIdx.x / 32 % 4),
                 threadIdx.x % 128 == 0},
          exchanged(stages + S::kExchange),
          weight(device::describe_box(device::shared_address(stages + S::kXBytes),
                                      S::kDepth * device::kBoxBytes)),
          group(group),
          rank(rank),
          first_row(S::kTurns ? 0 : group * 64) {
        x = device::describe_box(device::shared_address(stages + first_row * device::kBoxBytes), 0);
    }

    __device__ void release(int which) const {
        if constexpr (S::kCluster > 1) {
            if (finish.lane < S::kCluster) device::arrive_in(&barriers.empty[which], finish.lane);
        } else {
            if (finish.lane == 0) device::arrive(&barriers.empty[which]);
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

    // Gives the other block of the tile its half of the columns, and adds what it gives.
    __device__ void exchange(OwnSums& own, Sums const& sums) {
        uint32_t const to = device::address_in(
            device::shared_address(exchanged) + threadIdx.x % 128 * 16, 1 - rank);
        uint32_t const barrier =
            device::address_in(device::shared_address(&barriers.exchange), 1 - rank);
        device::wait_for_cluster();
#pragma unroll
        for (int j = 0; j < kOwnBlocks; ++j) {
            int const first = j / 8 * 16 + j % 8;  // of the two halves of the gate, or of up
            float other[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                float const low = sums[0][first][i], high = sums[0][first + 8][i];
                own[0][j][i] = rank == 0 ? low : high;
                other[i] = rank == 0 ? high : low;
            }
            device::store_in(to + j * 128 * 16, other, barrier);
        }
        device::wait(&barriers.exchange, 0);
#pragma unroll
        for (int j = 0; j < kOwnBlocks; ++j) {
            float4 const more =
                reinterpret_cast<float4 const*>(exchanged)[j * 128 + threadIdx.x % 128];
            own[0][j][0] += more.x, own[0][j][1] += more.y;
            own[0][j][2] += more.z, own[0][j][3] += more.w;
        }
    }

    __device__ void multiply(GemmTile tile, int steps) {
        Sums sums;
        uint32_t bias[kOwnBlocks];
        tile.row += first_row;
        if (S::kParts > 1) tile.col += rank * 64;
        finish.begin(tile);
        finish.load_bias(bias, tile);
        accumulate(sums, steps);
        if constexpr (S::kParts > 1) {
            OwnSums own;
            exchange(own, sums);
            finish.finish(own, bias, tile);
        } else {
            finish.finish(sums, bias, tile);
        }
    }

    __device__ void run(GemmOrder const& order, int steps) {
        if (S::kTurns && group == 1) {
            end_turn();  // group 0 begins
            pass(steps);
        }
        for_each_tile<S, kGated>(order, rank, S::kTurns ? group : 0, S::kTurns ? 2 : 1,
                                 [&](GemmTile const& tile) {
                                     multiply(tile, steps);
                                     if (S::kTurns) pass(steps);
                                 });
        if (finish.leader) device::wait_for_stores<0>();
    }
};

template <class S>
__device__ void init_barriers(GemmBarriers<S>& barriers, GemmMaps const& maps) {
    for (int i = 0; i < S::kStages; ++i) {
        device::init_barrier(&barriers.full[i], 1);
        device::init_barrier(&barriers.empty[i], 4 * S::kReaders * S::kCluster);
    }
    for (auto& of_group : barriers.residual)
        for (auto& barrier : of_group) device::init_barrier(&barrier, 1);
    device::init_barrier(&barriers.exchange, 1);
    device::publish_barriers();
    if (S::kParts > 1) device::arrive_expecting(&barriers.exchange, S::kExchangeBytes);
    device::prefetch_map(maps.x);
    device::prefetch_map(maps.weight);
}

template <class T, class S, bool kByRows, bool kGated>
__global__ void __launch_bounds__(S::kThreads, 1)
    hopper_gemm_kernel(Gemm const g, GemmOrder const order, __grid_constant__ GemmMaps const maps) {
    extern __shared__ __align__(16) unsigned char shared[];
    unsigned char* const stages = shared + (1024 - device::shared_address(shared) % 1024) % 1024;
    auto& barriers = *reinterpret_cast<GemmBarriers<S>*>(stages + S::kBarriers);
    constexpr bool kClustered = S::kCluster * S::kParts > 1;
    if (threadIdx.x == 0) init_barriers<S>(barriers, maps);
    __syncthreads();
    if (kClustered) device::arrive_at_cluster();
    if (S::kCluster > 1) device::wait_for_cluster();
    device::let_next_start();
    device::wait_for_previous();
    int const rank = kClustered ? device::cluster_rank() : 0;
    GemmSteps const steps = gemm_steps<S>(g.depth, rank);
    // Shuffled, so that the compiler knows that a warp's threads agree on it.
    int const group = __shfl_sync(0xffffffff, static_cast<int>(threadIdx.x / 128), 0) - 1;
    if (group < 0) {
        device::leave_registers<24>();
        if (threadIdx.x == 0)
            load_tiles<S, kByRows, kGated>(maps, order, barriers, stages, steps, rank);
        if (S::kParts > 1) device::wait_for_cluster();
    } else {
        device::take_registers<240>();
        GemmConsumer<T, S, kByRows, kGated> consumer(maps, g, barriers, stages, group, rank);
        consumer.run(order, steps.count());
    }
    if constexpr (S::kCluster > 1) {  // no block ends while others tell it
        device::arrive_at_cluster();
        device::wait_for_cluster();
    }
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
    int64_t const tiles = int64_t{order.rows} * order.cols;
    device::Grid grid;
    grid.cluster = S::kCluster * S::kParts;
    // Parts of a tile exchange sums once: they have no tile after it.
    int64_t const most = S::kParts > 1 ? tiles : machine.multiprocessors / S::kCluster;
    grid.blocks = std::min(most, tiles) * grid.cluster;
    grid.threads = dim3(S::kThreads);
    grid.shared_bytes = S::kSharedBytes;
    return device::launch(hopper_gemm_kernel<T, S, kByRows, kGated>, machine, grid, stream, g,
                          order, maps);
}

}  // namespace opfuse
