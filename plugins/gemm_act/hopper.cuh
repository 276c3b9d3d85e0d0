// y = activation(x w + bias) + residual on Hopper: TMA, wgmma, warp specialisation, clusters.
//
// A block stays on its multiprocessor and takes tiles of y.  One warp asks the copy engine for
// stages of x and of the weight; the other warp groups multiply them, and finish the tile while the
// next one's first stages come in.
#pragma once
#include <algorithm>

#include "../device/launch.cuh"
#include "cluster.cuh"
#include "finish.cuh"
#include "launch.h"
#include "load.cuh"
#include "products.cuh"

namespace opfuse {

// ---- kernels

// A consumer: warp group `group` has some columns of each tile, or every other tile.
template <class T, class S, bool kByRows, bool kGated>
struct GemmConsumer {
    static constexpr int kTurn =
        3;  // the first of two named barriers; those before are the groups'
    using Finish = GemmFinish<T, S, kGated>;
    using Sums = typename Finish::Sums;

    GemmBarriers<S>& barriers;
    Finish finish;
    uint64_t const x, weight;  // descriptions of boxes; of the first stage
    int const group;
    int stage = 0;
    uint32_t parity = 0;
    int last_slot = -1;  // finish.first_slot of the block's last tile, if it is this group's

    __device__ GemmConsumer(GemmMaps const& maps, Gemm const& g, GemmBarriers<S>& barriers,
                            unsigned char* stages, int group)
        : barriers(barriers),
          finish{maps,
                 g,
                 barriers,
                 stages,
                 stages + S::kChunks + group * S::kSlots * S::kChunkBytes,
                 group,
                 static_cast<int>(threadIdx.x % 32),
                 static_cast<int>(threadIdx.x / 32 % 4),
                 threadIdx.x % 128 == 0},
          x(device::describe_box(device::shared_address(stages), 0)),
          weight(device::describe_box(
              device::shared_address(stages + S::kXBytes + first_box(group) * S::kOfBox), 0)),
          group(group) {}

    // Gated, all boxes of the gate are before those of what it lets through.
    __device__ static int first_box(int group) {
        return S::kTurns ? 0 : kGated ? group : group * S::kHeights;
    }
    static constexpr int kBoxStep = kGated ? S::kBoxes / 2 : 1;  // from one height to the next

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
                device::multiply<T, kByRows>(sums[h],
                                             weight + at + h * kBoxStep * S::kOfBox / 16 +
                                                 i * (kByRows ? device::kBoxBytes : 2),
                                             x + at + i * 2, add || i > 0);
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

    __device__ void multiply(GemmTile tile, int steps) {
        Sums sums;
        typename Finish::RawBias bias;
        if (!S::kTurns) tile.col += group * (kGated ? 64 : 64 * S::kHeights);
        finish.load_bias(bias, tile);
        accumulate(sums, steps);
        await_residual();
        finish.finish(sums, bias, tile);
        release_residual();
        if constexpr (S::kStoringWarps) ++finish.turn;
        if constexpr (S::kResidualSlots) finish.first_slot += S::kChunksOfTile;
    }

    __device__ bool has_residual_stages() const {
        return S::kResidualStages && !kGated && finish.g.residual;
    }
    // By turns, a stage behind the block's last tile has chunks of it.
    __device__ bool ends_block() const {
        return S::kResidualSlots && S::kSlots < S::kChunksOfTile && finish.first_slot == last_slot;
    }
    __device__ void await_residual() {
        if (ends_block()) {
            device::wait(&barriers.full[stage], parity);
            finish.residual = finish.stages + stage * S::kStageBytes;
        }
        if (!has_residual_stages()) return;
        int const own = (stage + group) % S::kStages;
        device::wait(&barriers.full[own], parity ^ (stage + group >= S::kStages));
        finish.residual = finish.stages + own * S::kStageBytes;
    }
    // Each group waits for each stage before it releases it: a barrier tells one phase from the
    // next, not from the one after it.
    __device__ void release_residual() {
        if (!has_residual_stages()) return;
#pragma unroll
        for (int other = 0; other < S::kGroups; ++other) {
            device::wait(&barriers.full[stage], parity);
            release(stage);
            pass(1);
        }
    }

    __device__ void run(GemmOrder const& order, int steps, int rank) {
        if constexpr (S::kResidualSlots) {
            int const last = count_tiles<S>(order) - 1;
            if (last % S::kGroups == group) last_slot = last / S::kGroups * S::kChunksOfTile;
        }
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
    if constexpr (S::kResidualSlots) init_slot_barriers<S>(barriers.slots);
    if constexpr (S::kStoringWarps) init_chunk_barriers<S>(barriers.slots);
    device::publish_barriers();
    device::prefetch_map(maps.x);
    device::prefetch_map(maps.weight);
}

template <class T, class S, bool kByRows, bool kGated>
__global__ void __launch_bounds__(S::kThreads, 1)
    hopper_gemm_kernel(Gemm const g, GemmOrder const order, __grid_constant__ GemmMaps const maps) {
    extern __shared__ __align__(16) unsigned char shared[];
    unsigned char* const stages = shared + (1024 - device::shared_address(shared) % 1024) % 1024;
    auto& barriers = *reinterpret_cast<GemmBarriers<S>*>(stages + S::kBarriers);
    int const rank = S::kCluster > 1 ? device::cluster_rank() : 0;
    int const steps = gemm_steps<S>(g.depth);
    // Shuffled, so that the compiler knows that a warp's threads agree on it.
    int const group = __shfl_sync(0xffffffff, static_cast<int>(threadIdx.x / 128), 0) - 1;
    if (threadIdx.x == 0) init_barriers<S>(barriers, maps);
    __syncthreads();
    if constexpr (S::kCluster > 1) {
        device::arrive_at_cluster();
        device::wait_for_cluster();
    }
    device::wait_for_previous();
    if (group < 0) {
        device::leave_registers<40>();
        if (threadIdx.x == 0) {
            load_tiles<S, kByRows, kGated>(maps, order, barriers, stages, steps, rank,
                                           g.residual != nullptr);
            // Not before: the next kernel's blocks would wait on multiprocessors that have no tile,
            // and 128x2048x3072 takes 10.3 us instead of 9.0.
            device::let_next_start();
        }
        if constexpr (S::kResidualSlots)
            copy_chunks<S>(maps, g, order, barriers, stages, steps, rank);
        if constexpr (S::kStoringWarps) store_chunks<S>(maps, order, barriers.slots, stages, rank);
    } else {
        device::take_registers<S::kGroups == 1 ? 240 : 232>();
        GemmConsumer<T, S, kByRows, kGated> consumer(maps, g, barriers, stages, group);
        consumer.run(order, steps, rank);
    }
    if constexpr (S::kCluster > 1) {  // no block ends while others tell it
        device::arrive_at_cluster();
        device::wait_for_cluster();
    }
}

// ---- launchers

template <class T, class S, bool kByRows, bool kGated>
cudaError_t launch_hopper_kernel(Gemm const& g, int band, cudaStream_t stream) {
    device::Machine machine;
    if (cudaError_t const status = device::current_machine(machine)) return status;
    GemmMaps maps;
    int const x_rows = static_cast<int>(S::kStaysInside ? std::min<int64_t>(S::kLoadedRows, g.rows)
                                                        : S::kLoadedRows);
    if (!map_gemm(maps, g, std::is_same_v<T, __half>, x_rows, S::kChunkRows))
        return cudaErrorNotSupported;
    int constexpr kClusterCols = S::template kCols<kGated> * S::kCluster;
    GemmOrder const order{static_cast<int>((g.rows + S::kRows - 1) / S::kRows),
                          (g.cols + kClusterCols - 1) / kClusterCols, band,
                          static_cast<int>(std::max<int64_t>(0, g.rows - S::kRows)), x_rows};
    int64_t const tiles = int64_t{order.rows} * order.cols;
    device::Grid grid;
    grid.cluster = S::kCluster;
    grid.blocks = std::min<int64_t>(machine.multiprocessors / S::kCluster, tiles) * S::kCluster;
    grid.threads = dim3(S::kThreads);
    grid.shared_bytes = S::kSharedBytes;
    // An early start costs more than it saves where rows are many: all products and norms of BERT
    // (3072 rows) take 1033 us in order, 1160 otherwise; of Llama with 2048 rows the same, and 5 %
    // more in order with 128.  Clusters take 2 us to start, which it hides.
    bool const in_order = S::kCluster == 1 && g.rows > 2048;
    return device::launch(hopper_gemm_kernel<T, S, kByRows, kGated>,
                          in_order ? device::kInOrder : machine, grid, stream, g, order, maps);
}

template <class T, class S, bool kByRows, bool kGated>
cudaError_t launch_hopper_gemm(Gemm const& g, int band, cudaStream_t stream) {
    if constexpr (S::kTurns && !kGated) {
        if (g.residual)
            return launch_hopper_kernel<T, WithResidual<S>, kByRows, false>(g, band, stream);
        // By chunks of 48 rows it is slower: 3072x768x3072 with GELU takes 28.2 us so, 27.1
        // without.
        if constexpr (S::kChunkRows == 64)
            return launch_hopper_kernel<T, WithStores<S>, kByRows, false>(g, band, stream);
    }
    return launch_hopper_kernel<T, S, kByRows, kGated>(g, band, stream);
}

}  // namespace opfuse
