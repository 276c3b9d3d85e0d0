// y = softmax(scale q k^T + mask) v for many queries on Hopper: TMA, wgmma, warp specialisation
// (after Shah et al. 2024, FlashAttention-3).
//
// A block stays on its multiprocessor and takes tiles of 128 queries.  One warp asks the copy
// engine for queries, keys, and values; two warp groups have 64 queries each.  A group issues the
// product for the next scores before that of the present weights with their values, so that it
// computes a softmax while the tensor cores multiply; and the groups take turns at issuing, so that
// the one's softmax falls into the other's products.
#pragma once
#include <algorithm>

#include "../device/tma.cuh"
#include "../device/wgmma.cuh"
#include "prefill.cuh"
#include "tensor_map.h"

namespace opfuse {

// ---- kernels

// kSize: the head sizes rounded up to an instance; kKeys: of one step.
template <int kSize_, int kKeys_>
struct HopperShape {
    static constexpr int kSize = kSize_, kKeys = kKeys_;
    static constexpr int kGroups = 2;  // of 128 threads, which multiply
    static constexpr int kThreads = 128 * (kGroups + 1);
    static constexpr int kRows = 64 * kGroups;
    static constexpr int kStages = 2;  // of keys, and of values
    static constexpr int kBoxes = kSize / kBoxColumns;
    static constexpr int kTileBytes = kKeys * kSize * 2;  // of keys or values
    static constexpr int kQueryBytes = kRows * kSize * 2;
    // 1024 more to align the tiles, and the barriers.
    static constexpr int kSharedBytes = kQueryBytes + 2 * kStages * kTileBytes + 1024 + 128;
};

struct HopperBarriers {
    uint64_t query_full, query_empty;
    uint64_t key_full[2], key_empty[2];
    uint64_t value_full[2], value_empty[2];
};

// Tiles in the order in which they are taken: heads of a set follow each other before the next tile
// of queries, so that their keys stay in the L2 cache; the tiles with the most causal keys go
// first.
struct TileOrder {
    int64_t heads;      // batch * heads
    int tiles;          // of a head
    int64_t set_heads;  // heads of a set
};

struct HopperTile {
    int64_t head_index;  // batch * heads + head
    int64_t kv_index;
    int first_row;
    int blocks;  // of keys that any row sees
};

template <class S>
__device__ HopperTile hopper_tile(Attention const& a, TileOrder const& order, int64_t index) {
    int64_t const set = index / (order.set_heads * order.tiles);
    int64_t const inside = index % (order.set_heads * order.tiles);
    int64_t const heads = min(order.set_heads, order.heads - set * order.set_heads);
    HopperTile tile;
    tile.head_index = set * order.set_heads + inside % heads;
    int64_t const batch = tile.head_index / a.heads, head = tile.head_index % a.heads;
    tile.kv_index = batch * a.kv_heads + head / (a.heads / a.kv_heads);
    tile.first_row = (order.tiles - 1 - static_cast<int>(inside / heads)) * S::kRows;
    int const end = a.causal ? min(a.keys, tile.first_row + S::kRows + a.keys - a.queries) : a.keys;
    tile.blocks = end <= 0 ? 0 : (end + S::kKeys - 1) / S::kKeys;
    return tile;
}

// Calls `work` with each tile of this block.  Every second round runs backwards: what was dealt the
// largest tile gets the smallest next.
template <class S, class Work>
__device__ void for_each_tile(Attention const& a, TileOrder const& order, Work work) {
    int64_t const all = order.heads * order.tiles;
    bool backwards = false;
    for (int64_t first = 0; first < all; first += gridDim.x) {
        int64_t const index = first + (backwards ? gridDim.x - 1 - blockIdx.x : blockIdx.x);
        backwards = !backwards;
        if (index < all) work(hopper_tile<S>(a, order, index));
    }
}

// The producer: keys and values from the last block to the first.
template <class S>
__device__ void load_tiles(Attention const& a, TileOrder const& order, AttentionMaps const& maps,
                           HopperBarriers& barriers, unsigned char* q, unsigned char* k,
                           unsigned char* v) {
    auto const copy = [](unsigned char* to, CUtensorMap const& map, uint64_t* barrier, int rows,
                         int row, int64_t matrix) {
        device::arrive_expecting(barrier, rows * S::kSize * 2);
#pragma unroll
        for (int box = 0; box < S::kBoxes; ++box)
            device::copy_box(to + box * rows * device::kBoxBytes, map, barrier, box * kBoxColumns,
                             row, static_cast<int>(matrix));
    };
    uint32_t tiles = 0, steps = 0;
    for_each_tile<S>(a, order, [&](HopperTile const& tile) {
        if (tile.blocks == 0) return;
        device::wait(&barriers.query_empty, ~tiles++ & 1);
        copy(q, maps.q, &barriers.query_full, S::kRows, tile.first_row, tile.head_index);
        for (int block = tile.blocks - 1; block >= 0; --block, ++steps) {
            uint32_t const stage = steps % S::kStages, parity = ~(steps / S::kStages) & 1;
            device::wait(&barriers.key_empty[stage], parity);
            copy(k + stage * S::kTileBytes, maps.k, &barriers.key_full[stage], S::kKeys,
                 block * S::kKeys, tile.kv_index);
            device::wait(&barriers.value_empty[stage], parity);
            copy(v + stage * S::kTileBytes, maps.v, &barriers.value_full[stage], S::kKeys,
                 block * S::kKeys, tile.kv_index);
        }
    });
}

// s = q k^T; one group of products.
template <class T, class S>
__device__ void issue_scores(float (&s)[S::kKeys / 8][4], uint64_t q, uint64_t k) {
#pragma unroll
    for (int step = 0; step < S::kSize / 16; ++step) {
        int const box = step / 4, inside = step % 4 * 32 / 16;  // of 32 bytes, in units of 16
        device::multiply_shared<T>(s, q + box * S::kRows * device::kBoxBytes / 16 + inside,
                                   k + box * S::kKeys * device::kBoxBytes / 16 + inside, step > 0);
    }
    device::commit_products();
}

// out += p v; one group of products.
template <class T, class S>
__device__ void issue_results(float (&out)[S::kSize / 8][4], uint32_t const (&p)[S::kKeys / 16][4],
                              uint64_t v) {
#pragma unroll
    for (int step = 0; step < S::kKeys / 16; ++step)
        device::multiply_registers<T>(out, p[step], v + step * 16 * device::kBoxBytes / 16);
    device::commit_products();
}

template <class T, int kSteps>
__device__ void pack_weights(uint32_t (&p)[kSteps][4], float const (&s)[2 * kSteps][4]) {
#pragma unroll
    for (int step = 0; step < kSteps; ++step)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            float const(&from)[4] = s[2 * step + i / 2];
            p[step][i] = device::pack<T>(from[i % 2 * 2], from[i % 2 * 2 + 1]);
        }
}

template <class T, int kSize>
__device__ void store_results(Attention const& a, HopperTile const& tile, int row,
                              float (&out)[kSize / 8][4], RunningSoftmax& softmax) {
    softmax.finish();
    T* const y = static_cast<T*>(a.y) + tile.head_index * a.queries * a.value_size;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        if (row + 8 * r >= a.queries) continue;
        float const sum = softmax.sum[r];
        T* const y_row = y + static_cast<int64_t>(row + 8 * r) * a.value_size;
#pragma unroll
        for (int i = 0; i < kSize / 8; ++i)
            store_pair(y_row, 8 * i + threadIdx.x % 4 * 2, a.value_size, a.y_in_pairs,
                       normalised(out[i][2 * r], sum, a.nan_guard),
                       normalised(out[i][2 * r + 1], sum, a.nan_guard));
    }
}

// A consumer: warp group `group` has 64 rows of each tile.
template <class T, class S, bool kPlain>
struct HopperConsumer {
    static constexpr int kBlocks = S::kKeys / 8;  // of scores, in registers
    static constexpr int kTurnThreads = 256;

    Attention const& a;
    HopperBarriers& barriers;
    uint64_t queries, keys, values;  // descriptions of boxes; of the first stage
    int group, lane, warp_row;
    uint32_t tiles = 0, steps = 0;  // taken; a step is a block of keys, and values are one behind

    __device__ HopperConsumer(Attention const& a, HopperBarriers& barriers, unsigned char* q,
                              unsigned char* k, unsigned char* v, int group)
        : a(a),
          barriers(barriers),
          queries(device::describe_box(device::shared_address(q + group * 64 * device::kBoxBytes),
                                       S::kRows * device::kBoxBytes)),
          keys(device::describe_box(device::shared_address(k), S::kKeys * device::kBoxBytes)),
          values(device::describe_box(device::shared_address(v), S::kKeys * device::kBoxBytes)),
          group(group),
          lane(threadIdx.x % 32),
          warp_row(group * 64 + threadIdx.x / 32 % 4 * 16) {
        if (group == 1) device::arrive_to_meet(1, kTurnThreads);  // group 0 goes first
    }

    __device__ static int stage(uint32_t step) { return step % S::kStages; }
    __device__ static uint32_t parity(uint32_t step) { return step / S::kStages & 1; }
    __device__ static uint64_t at_stage(uint64_t boxes, uint32_t step) {
        return boxes + stage(step) * (S::kTileBytes / 16);
    }
    __device__ void release(uint64_t* barrier) const {
        if (lane == 0) device::arrive(barrier);
    }

    // Scores to weights; gives what earlier results are to be scaled by.
    __device__ float2 weigh(float (&s)[kBlocks][4], RunningSoftmax& softmax,
                            ScoreRow const (&rows)[2], int all_see, int block) const {
        int const key = block * S::kKeys + lane % 4 * 2;
        if constexpr (!kPlain) scale_scores(s, a), add_mask<T, true>(s, a, rows, key);
        if (block * S::kKeys + S::kKeys - 1 > all_see) hide_scores(s, rows, key);
        return softmax.template update<kPlain>(s, kPlain ? a.scale * kLog2E : kLog2E);
    }

    // Named barrier 1 + group says that it is this group's turn.
    __device__ void walk(float (&out)[S::kSize / 8][4], RunningSoftmax& softmax,
                         HopperTile const& tile, ScoreRow const (&rows)[2], int all_see) {
        float s[kBlocks][4];
        uint32_t p[kBlocks / 2][4];
        device::wait(&barriers.query_full, tiles++ & 1);
        device::wait(&barriers.key_full[stage(steps)], parity(steps));
        device::fence_products();
        issue_scores<T, S>(s, queries, at_stage(keys, steps));
        device::wait_for_products<0>();
        release(&barriers.key_empty[stage(steps)]);
        if (tile.blocks == 1) release(&barriers.query_empty);
        weigh(s, softmax, rows, all_see, tile.blocks - 1);
        pack_weights<T>(p, s);
        for (int block = tile.blocks - 2; block >= 0; --block) {
            ++steps;
            device::wait(&barriers.key_full[stage(steps)], parity(steps));
            device::meet(1 + group, kTurnThreads);
            device::fence_products();
            issue_scores<T, S>(s, queries, at_stage(keys, steps));
            device::wait(&barriers.value_full[stage(steps - 1)], parity(steps - 1));
            issue_results<T, S>(out, p, at_stage(values, steps - 1));
            device::arrive_to_meet(2 - group, kTurnThreads);
            device::wait_for_products<1>();
            release(&barriers.key_empty[stage(steps)]);
            if (block == 0) release(&barriers.query_empty);
            float2 const correction = weigh(s, softmax, rows, all_see, block);
            device::wait_for_products<0>();
            release(&barriers.value_empty[stage(steps - 1)]);
            pack_weights<T>(p, s);
            scale_rows(out, correction);
        }
        device::wait(&barriers.value_full[stage(steps)], parity(steps));
        device::fence_products();
        issue_results<T, S>(out, p, at_stage(values, steps));
        device::wait_for_products<0>();
        release(&barriers.value_empty[stage(steps)]);
        ++steps;
    }

    __device__ void multiply(HopperTile const& tile) {
        float out[S::kSize / 8][4] = {};
        RunningSoftmax softmax;
        int const row = tile.first_row + warp_row + lane / 4;
        int64_t const batch = tile.head_index / a.heads;
        int const head = static_cast<int>(tile.head_index % a.heads);
        ScoreRow const rows[2] = {score_row(a, batch, head, row),
                                  score_row(a, batch, head, row + 8)};
        int all_see = a.keys - 1;  // the last key that each of this warp's rows sees
        if (a.causal) all_see = min(all_see, tile.first_row + warp_row + a.keys - a.queries);
        if (tile.blocks > 0) walk(out, softmax, tile, rows, all_see);
        store_results<T, S::kSize>(a, tile, row, out, softmax);
    }
};

template <class T, class S, bool kPlain>
__global__ void __launch_bounds__(S::kThreads, 1)
    hopper_kernel(Attention const a, TileOrder const order,
                  __grid_constant__ AttentionMaps const maps) {
    extern __shared__ __align__(16) unsigned char shared[];
    unsigned char* const q = shared + (1024 - device::shared_address(shared) % 1024) % 1024;
    unsigned char* const k = q + S::kQueryBytes;
    unsigned char* const v = k + S::kStages * S::kTileBytes;
    auto& barriers = *reinterpret_cast<HopperBarriers*>(v + S::kStages * S::kTileBytes);
    if (threadIdx.x == 0) {
        constexpr int kWarps = 4 * S::kGroups;  // each tells when it has read
        device::init_barrier(&barriers.query_full, 1);
        device::init_barrier(&barriers.query_empty, kWarps);
        for (int i = 0; i < S::kStages; ++i) {
            device::init_barrier(&barriers.key_full[i], 1);
            device::init_barrier(&barriers.value_full[i], 1);
            device::init_barrier(&barriers.key_empty[i], kWarps);
            device::init_barrier(&barriers.value_empty[i], kWarps);
        }
        device::publish_barriers();
    }
    __syncthreads();
    int const group = static_cast<int>(threadIdx.x / 128) - 1;
    if (group < 0) {
        device::leave_registers<24>();
        if (threadIdx.x == 0) load_tiles<S>(a, order, maps, barriers, q, k, v);
    } else {
        device::take_registers<240>();
        HopperConsumer<T, S, kPlain> consumer(a, barriers, q, k, v, group);
        for_each_tile<S>(a, order, [&](HopperTile const& tile) { consumer.multiply(tile); });
    }
}

// ---- launchers

inline constexpr int64_t kSetBytes = 16 << 20;  // of keys and values, at home in the L2 cache

template <class T, class S, bool kPlain>
cudaError_t launch_hopper(Attention const& a, AttentionMaps const& maps, cudaStream_t stream) {
    auto const kernel = hopper_kernel<T, S, kPlain>;
    int device = 0, processors = 0;
    cudaError_t status =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, S::kSharedBytes);
    if (!status) status = cudaGetDevice(&device);
    if (!status)
        status = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
    if (status) return status;
    int64_t const group = a.heads / a.kv_heads;
    int64_t const head_bytes = int64_t{4} * a.keys * S::kSize;
    TileOrder order{a.batch * a.heads, (a.queries + S::kRows - 1) / S::kRows};
    order.set_heads = std::clamp<int64_t>(kSetBytes / head_bytes * group, group, order.heads);
    cudaLaunchConfig_t config{};
    config.gridDim =
        dim3(static_cast<unsigned>(std::min<int64_t>(processors, order.heads * order.tiles)));
    config.blockDim = dim3(S::kThreads);
    config.dynamicSmemBytes = S::kSharedBytes;
    config.stream = stream;
    return cudaLaunchKernelEx(&config, kernel, a, order, maps);
}

template <class T, class S, bool kPlain>
cudaError_t launch_mapped(Attention const& a, cudaStream_t stream) {
    AttentionMaps maps;
    if (!map_attention(maps, a, std::is_same_v<T, __half>, S::kRows, S::kKeys))
        return cudaErrorNotSupported;
    return launch_hopper<T, S, kPlain>(a, maps, stream);
}

template <class T, int kSize>
cudaError_t launch_hopper(Attention const& a, cudaStream_t stream) {
    using S = HopperShape<kSize, 128>;
    bool const plain = !a.mask.data && !(a.softcap > 0.f) && a.scale > 0.f;
    if (!plain) return launch_mapped<T, S, false>(a, stream);
    if constexpr (kSize == 128)  // as many keys as registers hold, where few are beyond the end
        if (!a.causal && a.keys >= 1024)
            return launch_mapped<T, HopperShape<128, 176>, true>(a, stream);
    return launch_mapped<T, S, true>(a, stream);
}

}  // namespace opfuse
