// y = activation(x w + bias) + residual of few rows on Hopper, where reading w is all of the work.
//
// A block takes tiles of columns in turn with the others, so that all together read whole rows of w
// one after another; the blocks of a cluster share one tile, and each takes every so manyth stage
// of the depth.  Memory is read fastest in that order: with neighbouring parts of the depth
// instead, 64x4096x14336 takes 62 us, not 42.
#pragma once
#include "cluster.cuh"
#include "launch.h"
#include "load.cuh"
#include "products.cuh"
#include "stream_finish.cuh"

namespace opfuse {

// The warp group that multiplies.
template <class T, class S, bool kByRows, bool kGated>
struct StreamConsumer {
    using Finish = StreamFinish<T, S, kGated>;
    static constexpr int kBlocks = Finish::kBlocks;

    StreamPart const& part;
    StreamBarriers<S>& barriers;
    float4* const given;  // [who gives][own blocks of rows][boxes][threads], from this thread's on
    uint64_t const x, weight;
    Finish const finish;
    int stage = 0, x_stage = 0;
    uint32_t parity = 0;

    __device__ StreamConsumer(Gemm const& g, StreamPart const& part, StreamBarriers<S>& barriers,
                              unsigned char* stages, unsigned char* given)
        : part(part),
          barriers(barriers),
          given(reinterpret_cast<float4*>(given) + threadIdx.x),
          x(device::describe_box(device::shared_address(stages + S::kX), 0)),
          weight(device::describe_box(device::shared_address(stages), 0)),
          finish{g, part.own(), static_cast<int>(threadIdx.x / 32),
                 static_cast<int>(threadIdx.x % 32)} {}

    __device__ void issue(typename Finish::Sums& sums, bool add) const {
        uint64_t const a = weight + stage * (S::kWeightBytes / 16);
        uint64_t const b = x + x_stage * (S::kXBytes / 16);
#pragma unroll
        for (int i = 0; i < S::kDepth / 16; ++i)
#pragma unroll
            for (int box = 0; box < S::kBoxes; ++box)
                device::multiply<T, kByRows>(
                    sums[box], a + box * (S::kOfBox / 16) + i * (kByRows ? device::kBoxBytes : 2),
                    b + i * 2, add || i > 0);
        device::commit_products();
    }

    __device__ void release(int which) const {
        if (finish.lane == 0) device::arrive(&barriers.empty[which]);
    }

    __device__ void accumulate(typename Finish::Sums& sums, int steps) {
        int before = 0;
        for (int step = 0; step < steps; ++step) {
            device::wait(&barriers.full[stage], parity);
            device::fence_products();
            issue(sums, step > 0);
            if (step > 0) {
                device::wait_for_products<1>();
                release(before);
            }
            before = stage;
            if (++stage == S::kStages) stage = 0, parity ^= 1;
            if (++x_stage == S::kXStages) x_stage = 0;
        }
        device::wait_for_products<0>();
        release(before);
    }

    // Each block of 8 rows to the block of threads that finishes it.
    __device__ void give(typename Finish::Sums const& sums) const {
        int const cluster = part.plan.cluster, rank = part.rank;
        int to = 0, number = 0;  // of its own blocks
#pragma unroll
        for (int j = 0; j < kBlocks; ++j) {
            if (to != rank) {
                int const from = rank < to ? rank : rank - 1;
                int const slot = from * part.own_blocks(kBlocks, to) + number;
                float4* const there = given + slot * (S::kBlockBytes / 16);
                uint32_t const at = device::address_in(device::shared_address(there), to);
                uint32_t const done =
                    device::address_in(device::shared_address(&barriers.given), to);
#pragma unroll
                for (int box = 0; box < S::kBoxes; ++box)
                    device::store_in(at + box * S::kConsumers * 16, sums[box][j], done);
            }
            if (++to == cluster) to = 0, ++number;
        }
    }

    // In the order of the blocks of threads: the same bits each time.
    __device__ void take(typename Finish::Sums& sums) const {
        device::wait(&barriers.given, 0);
        float4 const* from = given;
        for (int other = 1; other < part.plan.cluster; ++other)
#pragma unroll
            for (int j = 0; j < kBlocks; ++j) {
                if (!finish.has(j)) continue;
#pragma unroll
                for (int box = 0; box < S::kBoxes; ++box) {
                    float4 const more = from[box * S::kConsumers];
                    sums[box][j][0] += more.x, sums[box][j][1] += more.y;
                    sums[box][j][2] += more.z, sums[box][j][3] += more.w;
                }
                from += S::kBlockBytes / 16;
            }
    }

    __device__ void run() {
        GemmTile tile{part.row, part.col};
        for (int i = 0; i < part.tiles; ++i, tile.col += part.col_step) {
            typename Finish::Sums sums;
            typename Finish::More more;
            typename Finish::Place const place(finish.g, part.plan, tile);
            finish.load(more, place);
            accumulate(sums, part.steps);
            if (part.plan.cluster > 1) {
                give(sums);
                take(sums);
            }
            finish.finish(sums, more, place);
        }
    }
};

// Asks for the first stages of the weight to be in L2, which is allowed ahead of wait_for_previous.
template <class S, bool kByRows, bool kGated>
__device__ void prefetch_stream(Gemm const& g, StreamPart const& part) {
    constexpr int kLines = S::kBoxes * 64;  // of 128 bytes, of a stage
    int const lines = min(part.steps, part.plan.early) * kLines;
    for (int i = threadIdx.x; i < lines; i += S::kConsumers) {
        int const box = i % S::kBoxes, inside = i / S::kBoxes % 64;
        int const k = part.depth(i / kLines) + (kByRows ? inside : 0);
        bool const up = kGated && box >= S::kBoxes / 2;
        int const of_box = box % S::template kOut<kGated> * part.plan.box;
        int const col = part.col + of_box + (kByRows ? 0 : inside);
        if (k >= g.depth || col >= g.cols || (!kByRows && inside >= part.plan.box)) continue;
        int64_t const stride = kByRows ? int64_t{g.cols} * (kGated ? 2 : 1) : g.depth;
        int64_t const from = kByRows ? k * stride + col + (up ? g.cols : 0) : col * stride + k;
        device::prefetch(static_cast<uint16_t const*>(g.weight) + from);
    }
}

template <class S, bool kByRows, bool kGated>
__device__ void load_stream(GemmMaps const& maps, StreamPart const& part,
                            StreamBarriers<S>& barriers, unsigned char* stages) {
    int const all = part.tiles * part.steps;
    int stage = 0, of_x = 0, x_stage = 0;  // of_x: the stage of the weight that x belongs to
    int step = 0, x_step = 0;
    uint32_t parity = 1;
    GemmTile tile{part.row, part.col};
    for (int i = 0; i < all + S::kLead; ++i) {
        device::wait(&barriers.empty[stage], parity);
        if (i < all) {
            uint64_t* const full = &barriers.full[stage];
            device::arrive_expecting(full, part.plan.bytes);
            load_weight<S, kByRows, kGated>(stages + stage * S::kWeightBytes, maps, full, tile,
                                            part.depth(step), part.plan.box);
            if (++step == part.steps) step = 0, tile.col += part.col_step;
        }
        if (++stage == S::kStages) stage = 0, parity ^= 1;
        if (i < S::kLead) continue;
        load_x<S>(stages + S::kX + x_stage * S::kXBytes, maps, &barriers.full[of_x], tile,
                  part.depth(x_step), 0);
        if (++x_step == part.steps) x_step = 0;
        if (++of_x == S::kStages) of_x = 0;
        if (++x_stage == S::kXStages) x_stage = 0;
    }
}

template <class T, class S, bool kByRows, bool kGated>
__global__ void __launch_bounds__(S::kThreads, S::kResident)
    stream_gemm_kernel(Gemm const g, StreamPlan const plan, __grid_constant__ GemmMaps const maps) {
    extern __shared__ __align__(1024) unsigned char shared[];
    auto& barriers = *reinterpret_cast<StreamBarriers<S>*>(shared + S::kBarriers);
    int const rank = plan.cluster > 1 ? device::cluster_rank() : 0;
    StreamPart const part(plan, rank);
    // Shuffled, so that the compiler knows that a warp's threads agree on it.
    bool const loads = __shfl_sync(0xffffffff, static_cast<int>(threadIdx.x / 128), 0) > 0;
    if (threadIdx.x == 0) {
        for (int i = 0; i < S::kStages; ++i) {
            device::init_barrier(&barriers.full[i], 1);
            device::init_barrier(&barriers.empty[i], S::kConsumers / 32);
        }
        device::init_barrier(&barriers.given, 1);
        device::publish_barriers();
        device::prefetch_map(maps.x);
        device::prefetch_map(maps.weight);
        int const own = part.own_blocks(S::kBlocks, rank);
        device::arrive_expecting(&barriers.given, (plan.cluster - 1) * own * S::kBlockBytes);
    }
    __syncthreads();
    if (plan.cluster > 1) device::arrive_at_cluster();
    if (!loads) prefetch_stream<S, kByRows, kGated>(g, part);
    if (plan.cluster > 1) device::wait_for_cluster();
    device::wait_for_previous();
    if (!loads) {
        StreamConsumer<T, S, kByRows, kGated>(g, part, barriers, shared, shared + S::kGiven).run();
    } else if (threadIdx.x == S::kConsumers) {
        load_stream<S, kByRows, kGated>(maps, part, barriers, shared);
        device::let_next_start();
    }
}

}  // namespace opfuse
