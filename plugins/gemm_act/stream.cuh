// y = activation(x w + bias) + residual of few rows on Hopper, where reading w is all of the work.
//
// A block takes tiles of columns in turn with the others, so that all together read whole rows of w
// one after another; the blocks of a cluster share one tile, and each takes every so manyth stage
// of the depth.  Memory is read fastest in that order: with neighbouring parts of the depth
// instead, 64x4096x14336 takes 62 us, not 42.
#pragma once
#include <algorithm>

#include "../device/launch.cuh"
#include "cluster.cuh"
#include "launch.h"
#include "load.cuh"
#include "products.cuh"
#include "stream_finish.cuh"

namespace opfuse {

// ---- kernels

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
        for (int tile = part.first; tile < part.plan.tiles; tile += part.stride) {
            int const col = tile * S::template kCols<kGated>;
            typename Finish::Sums sums;
            typename Finish::More more;
            finish.load(more, col);
            accumulate(sums, part.steps);
            if (part.plan.cluster > 1) {
                give(sums);
                take(sums);
            }
            finish.finish(sums, more, col);
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
        int const of_box = (kGated ? box % (S::kBoxes / 2) : box) * 64;
        int const col = part.first * S::template kCols<kGated> + of_box + (kByRows ? 0 : inside);
        if (k >= g.depth || col >= g.cols) continue;
        int64_t const stride = kByRows ? int64_t{g.cols} * (kGated ? 2 : 1) : g.depth;
        int64_t const from = kByRows ? k * stride + col + (up ? g.cols : 0) : col * stride + k;
        device::prefetch(static_cast<uint16_t const*>(g.weight) + from);
    }
}

template <class S, bool kByRows, bool kGated>
__device__ void load_stream(GemmMaps const& maps, StreamPart const& part,
                            StreamBarriers<S>& barriers, unsigned char* stages) {
    int const tiles = (part.plan.tiles - part.first + part.stride - 1) / part.stride;
    int const all = tiles * part.steps;
    int stage = 0, of_x = 0, x_stage = 0;  // of_x: the stage of the weight that x belongs to
    int step = 0, x_step = 0;
    uint32_t parity = 1;
    GemmTile tile{0, part.first * S::template kCols<kGated>};
    for (int i = 0; i < all + S::kLead; ++i) {
        device::wait(&barriers.empty[stage], parity);
        if (i < all) {
            uint64_t* const full = &barriers.full[stage];
            device::arrive_expecting(full, S::kWeightBytes + S::kXBytes);
            load_weight<S, kByRows, kGated>(stages + stage * S::kWeightBytes, maps, full, tile,
                                            part.depth(step));
            if (++step == part.steps) step = 0, tile.col += part.stride * S::template kCols<kGated>;
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

// ---- launchers

inline int over(int a, int b) { return (a + b - 1) / b; }

template <class S, bool kByRows, bool kGated>
StreamPlan plan_stream(Gemm const& g, int multiprocessors) {
    constexpr int kMostShare = 4;  // blocks of a cluster
    constexpr int kEarly = 4;
    StreamPlan plan{1, over(g.cols, S::template kCols<kGated>), over(g.depth, S::kDepth), kEarly,
                    true};
    // A weight by columns has its rows of the depth one after another: halves of long ones.
    if (!kByRows && g.depth >= 8192 && 3 * plan.tiles > multiprocessors &&
        2 * plan.tiles <= multiprocessors) {
        plan.cluster = 2, plan.spread = false;
        return plan;
    }
    while (plan.cluster < kMostShare && 3 * plan.cluster * plan.tiles <= multiprocessors &&
           2 * plan.cluster <= plan.steps)
        plan.cluster *= 2;
    return plan;
}

template <class T, class S, bool kByRows, bool kGated>
cudaError_t launch_stream(Gemm const& g, cudaStream_t stream) {
    device::Machine machine;
    if (cudaError_t const status = device::current_machine(machine)) return status;
    // As many bytes as a block reads of a row: blocks that read their neighbours come later.
    constexpr int kFetched = kByRows ? std::min(256, 2 * S::template kCols<kGated>) : 256;
    GemmMaps maps;
    if (!map_gemm(maps, g, std::is_same_v<T, __half>, S::kRows, S::kRows, kFetched))
        return cudaErrorNotSupported;
    StreamPlan const plan = plan_stream<S, kByRows, kGated>(g, machine.multiprocessors);
    int const rounds = over(plan.tiles, machine.multiprocessors * S::kShare);
    device::Grid grid;
    grid.cluster = plan.cluster;
    grid.blocks = int64_t{over(plan.tiles, rounds)} * plan.cluster;
    grid.threads = dim3(S::kThreads);
    grid.shared_bytes =
        S::kGiven + (plan.cluster - 1) * over(S::kBlocks, plan.cluster) * S::kBlockBytes;
    return device::launch(stream_gemm_kernel<T, S, kByRows, kGated>, machine, grid, stream, g, plan,
                          maps);
}

// Shapes that were the fastest on an H100 of some thirty products, by rows and by columns: what is
// under way at a time is 6 to 10 MB.
template <class T, bool kByRows>
struct StreamLauncher {
    Gemm const& g;
    cudaStream_t stream;

    template <int... kShape>
    cudaError_t as() const {
        return launch_stream<T, StreamShape<kShape...>, kByRows, false>(g, stream);
    }
    template <int... kShape>
    cudaError_t gates_as() const {
        return launch_stream<T, StreamShape<kShape...>, true, true>(g, stream);
    }

    // Blocks with two tiles each would leave a quarter of the multiprocessors idle.
    static bool uneven(int tiles) { return tiles > 132 && tiles < 200; }

    cudaError_t plain() const {
        int const tiles = over(g.cols, 64);
        bool const wide = tiles > 132;
        if (g.rows <= 8) return wide ? as<8, 2, 5, 5, 2>() : as<8, 1, 11, 11, 2>();
        if (g.rows <= 16) return wide ? as<16, 1, 5, 5, 4, 2>() : as<16, 1, 10, 10, 2>();
        if (g.rows <= 32) {
            if (tiles <= 66) return as<32, 1, 12, 12, 1>();
            if (tiles > 264) return as<32, 2, 5, 5, 2, 2>();
            return uneven(tiles) ? as<32, 1, 8, 8, 2, 2>() : as<32, 1, 8, 8, 2>();
        }
        if (g.rows > 64) return as<128, 1, 6, 4, 2, 2>();
        if (!wide) return as<64, 1, 12, 12, 1>();
        if (uneven(tiles)) return as<64, 1, 8, 4, 2, 2>();
        return kByRows ? as<64, 2, 6, 4, 1>() : as<64, 2, 4, 4, 2>();
    }

    // Of 64 rows, what gains alone may lose behind a norm: two layers of Llama-3-8B's products take
    // 328 us by two tiles one after another, 361 by tiles of twice the columns, which alone are 1 %
    // faster.
    cudaError_t gates() const {
        int const tiles = over(g.cols, 64);
        bool const wide = tiles > 132;
        if (g.rows <= 8) return wide ? gates_as<8, 2, 3, 3, 4, 2>() : gates_as<8, 2, 5, 5, 2>();
        if (g.rows <= 16) return wide ? gates_as<16, 2, 3, 3, 4, 2>() : gates_as<16, 2, 5, 5, 2>();
        if (g.rows <= 32) return wide ? gates_as<32, 2, 6, 3, 2, 2>() : gates_as<32, 2, 5, 5, 2>();
        if (tiles <= 100) return gates_as<64, 2, 6, 6, 1>();
        return uneven(tiles) ? gates_as<64, 2, 5, 3, 2, 2>() : gates_as<64, 2, 4, 4, 2>();
    }
};

template <class T>
cudaError_t choose_stream(Gemm const& g, cudaStream_t stream) {
    if (g.gated) return StreamLauncher<T, true>{g, stream}.gates();
    return g.transposed ? StreamLauncher<T, false>{g, stream}.plain()
                        : StreamLauncher<T, true>{g, stream}.plain();
}

}  // namespace opfuse
