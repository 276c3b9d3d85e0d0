// The same on Hopper for so few queries that the copy engine is what counts: one warp group, of
// which one warp has the queries of all heads that share a key/value head, and keys that may be
// split over several blocks.
#pragma once
#include "arrivals.h"
#include "decode.cuh"
#include "hopper.cuh"

namespace opfuse {

// ---- kernels

// With a mask that all rows of a tile share, which one warp more brings: four blocks of keys under
// way, as floats.
template <class Base>
struct MaskedShape : Base {
    static constexpr int kThreads = Base::kThreads + 32;
    static constexpr int kMasks = 4, kMaskBytes = Base::kKeys * sizeof(float);
    static constexpr int kMaskWriters = 32, kMaskReaders = 128;  // each thread: reads are ordinary
    static constexpr int kTilesBytes = Base::kTilesBytes + kMasks * kMaskBytes;
    static constexpr int kSharedBytes = Base::kSharedBytes + kMasks * kMaskBytes;
};

// The tiles of this block: one for each key/value head and split of its keys.  `kCounts`: batches
// may have their own numbers of keys.
template <class S, bool kCounts>
struct SplitWalk {
    Attention const& a;
    KeySplits const& splits;
    int count;  // of all tiles
    int index = blockIdx.x;

    __device__ bool next(HopperTile& tile) {
        if (index >= count) return false;
        int const head_index = index / splits.count;
        tile.split = index % splits.count;
        tile.batch = head_index / a.heads;
        tile.head = tile.kv_head = head_index % a.heads;
        tile.first_row = 0;
        int const keys = keys_of_batch_if<kCounts>(a, tile.batch).there(a);
        int const blocks = splits.keys / S::kKeys;
        tile.begin = tile.split * blocks;
        tile.end = min(tile.begin + blocks, (keys + S::kKeys - 1) / S::kKeys);
        if constexpr (kCounts) tile.end = max(tile.begin, tile.end);
        index += gridDim.x;
        return true;
    }
};

// Without a branch, within which ptxas would wait for all tensor-core products under way.
__device__ inline void store_if(bool valid, float* to, float x, float y) {
    asm volatile(
        "{.reg .pred valid; setp.ne.b32 valid, %0, 0; @valid st.global.v2.f32 [%1], {%2, %3};}" ::
            "r"(static_cast<int>(valid)),
        "l"(to), "f"(x), "f"(y)
        : "memory");
}

// Results of a split, once `softmax` is finished: of a row its sums, its maximum, and its sum of
// weights.
template <class S>
__device__ void store_split(KeySplits const& splits, int64_t row, bool there,
                            float const (&out)[S::kSize / 8][4], RunningSoftmax const& softmax,
                            int r) {
    float* const to = splits.results + row * S::kSize + threadIdx.x % 4 * 2;
#pragma unroll
    for (int i = 0; i < S::kSize / 8; ++i)
        store_if(there, to + 8 * i, out[i][2 * r], out[i][2 * r + 1]);
    store_if(there && threadIdx.x % 4 == 0, splits.statistics + row * 2, softmax.max[r],
             softmax.sum[r]);
}

template <class S>
struct SplitResults {
    // Few queries wait for memory anyway: what packing loses of their weights is multiplied too,
    // for a quarter less error.
    static constexpr int kParts = 2;
    __device__ static int query_of(int row) { return row; }

    KeySplits const& splits;

    __device__ void store(Attention const& a, HopperTile const& tile, int row,
                          float const (&out)[S::kSize / 8][4], RunningSoftmax softmax) const {
        softmax.finish();
        int64_t const first =
            first_result(tile.batch * a.heads + tile.head, tile.split, splits, a.queries);
#pragma unroll
        for (int r = 0; r < 2; ++r)
            store_split<S>(splits, first + row + 8 * r, row + 8 * r < a.queries, out, softmax, r);
    }
};

// Blocks of keys that a launch asks for while the one ahead ends: one batch of 4096 keys takes 11.5
// us with none, 11.0 with two, 12.5 with all that have a place.
inline constexpr int kEarlyBlocks = 2;

// Asks for the first keys and values of this block to be in L2; not where their number is read, for
// it may be what the launch ahead writes.
template <class S, class Walk>
__device__ void prefetch_keys(AttentionMaps const& maps, Walk walk) {
    HopperTile tile;
    if (!walk.next(tile)) return;
    for (int i = tile.end - 1; i >= max(tile.begin, tile.end - kEarlyBlocks); --i)
        for (int box = 0; box < boxes_of(S::kSize); ++box) {
            device::prefetch_box(maps.k, box * device::kBoxColumns, i * S::kKeys, tile.kv_head,
                                 tile.batch);
            device::prefetch_box(maps.v, box * device::kBoxColumns, i * S::kKeys, tile.kv_head,
                                 tile.batch);
        }
}

// Asks for what is read first of a mask to be in L2.
template <class T, class S, class Walk>
__device__ void prefetch_mask(Attention const& a, Walk walk) {
    HopperTile tile;
    if (!walk.next(tile)) return;
    constexpr int kEach = S::kMasks * S::kKeys / 32;
    int const key = (tile.end - S::kMasks) * S::kKeys + threadIdx.x % 32 * kEach;
    int64_t const at =
        mask_start(a, tile.batch, tile.head, 0) + min(max(key, 0), a.keys - 1) * a.mask.key;
    device::prefetch(static_cast<char const*>(a.mask.data) +
                     at * (a.mask.is_float ? sizeof(float) : sizeof(T)));
}

// The warp that brings a mask: from the last block of keys to the first, like the copy engine.
template <class T, class S, class Walk>
__device__ void load_key_masks(Attention const& a, HopperBarriers<S>& barriers,
                               unsigned char* masks, Walk walk) {
    constexpr int kOwn = S::kKeys / 32;
    int const lane = threadIdx.x % 32;
    uint32_t step = 0;
    HopperTile tile;
    while (walk.next(tile)) {
        int64_t const start = mask_start(a, tile.batch, tile.head, 0);
        for (int last = tile.end - 1; last >= tile.begin; last -= S::kMasks) {
            float own[S::kMasks][kOwn];  // on their way together
#pragma unroll
            for (int i = 0; i < S::kMasks; ++i)
#pragma unroll
                for (int j = 0; j < kOwn; ++j) {
                    int const key = max(last - i, tile.begin) * S::kKeys + 32 * j + lane;
                    own[i][j] = mask_at<T>(a.mask, start, min(key, a.keys - 1));
                }
#pragma unroll
            for (int i = 0; i < S::kMasks; ++i) {
                if (last - i < tile.begin) break;
                uint32_t const place = step % S::kMasks;
                device::wait(&barriers.mask_empty[place], ~(step++ / S::kMasks) & 1);
                auto* const to = reinterpret_cast<float*>(masks + place * S::kMaskBytes);
#pragma unroll
                for (int j = 0; j < kOwn; ++j) to[32 * j + lane] = own[i][j];
                device::arrive(&barriers.mask_full[place]);
            }
        }
    }
}

// Of each key/value head, the splits whose results are there; the last one begins anew.
template <class S>
__device__ unsigned arrivals[kArrivalSets][kArrivalHeads];

// Whether this block is the last of a key/value head's splits; 128 threads ask.
template <class S>
__device__ bool arrives_last(KeySplits const& splits, int kv_index) {
    unsigned const last = splits.count - 1;
    bool is_last = false;
    device::meet(1, 128);
    if (threadIdx.x == 0) {
        __threadfence();  // also for what the others wrote ahead of the barrier
        is_last = atomicInc(&arrivals<S>[splits.arrivals][kv_index], last) == last;
        __threadfence();
    }
    return device::meet_and_ask(1, 128, is_last);
}

template <class T, class S, bool kSplit, Scores kScores>
__global__ void __launch_bounds__(S::kThreads, 1)
    hopper_decode_kernel(Attention const a, KeySplits const splits, int tiles,
                         __grid_constant__ AttentionMaps const maps) {
    extern __shared__ __align__(16) unsigned char shared[];
    unsigned char* const q = shared + (1024 - device::shared_address(shared) % 1024) % 1024;
    unsigned char* const k = q + S::kTiles * S::kQueryBytes;
    unsigned char* const v = k + S::kStages * S::kTileBytes;
    unsigned char* const masks = v + S::kStages * S::kTileBytes;
    auto& barriers = *reinterpret_cast<HopperBarriers<S>*>(q + S::kTilesBytes);
    static_assert(sizeof(barriers) <= S::kBarrierBytes);
    constexpr bool kCounts = counts_keys(kScores), kMasked = kScores == Scores::kKeyMask;
    SplitWalk<S, kCounts> const walk{a, splits, tiles};
    if (threadIdx.x == 0) barriers.init();
    if (threadIdx.x == 128) {
        prefetch_maps(maps);
        if constexpr (!kCounts) prefetch_keys<S>(maps, walk);
    }
    if constexpr (kMasked)
        if (threadIdx.x >= 160) prefetch_mask<T, S>(a, walk);
    __syncthreads();
    device::wait_in_turn();
    int const group = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x / 128), 0);
    if (group == 1) {
        if (threadIdx.x == 128) HopperLoader<S>{a, maps, barriers, q, k, v, nullptr}.run(walk);
        if constexpr (kMasked)
            if (threadIdx.x >= 160) load_key_masks<T, S>(a, barriers, masks, walk);
    } else if constexpr (kSplit) {
        HopperConsumer<T, S, kScores, SplitResults<S>> consumer(a, barriers, q, k, v, masks, group,
                                                                SplitResults<S>{splits});
        if constexpr (kCounts) consumer.store_empty(walk);
        consumer.run();
        int const kv_index = blockIdx.x / splits.count;
        if (splits.arrivals < 0 || !arrives_last<S>(splits, kv_index)) return;
        constexpr int kLanes = kCombineLanes<S::kSize>;
        int const own = threadIdx.x / kLanes;
        for (int row = 0; row < a.queries; row += 128 / kLanes)
            combine_row<T, S::kSize, !kMasked>(a, splits, kv_index, min(row + own, a.queries - 1),
                                               threadIdx.x % kLanes);
    } else {
        HopperConsumer<T, S, kScores> consumer(a, barriers, q, k, v, masks, group);
        if constexpr (kCounts) consumer.store_empty(walk);
        consumer.run();
    }
}

// ---- launchers

// Without keys that no query sees.
template <class T>
Attention without_first(Attention const& given, int first_key) {
    Attention a = given;
    a.k.data = static_cast<T*>(a.k.data) + first_key * a.k.row;
    a.v.data = static_cast<T*>(a.v.data) + first_key * a.v.row;
    a.keys -= first_key;
    int64_t const hidden = first_key * a.mask.key * (a.mask.is_float ? sizeof(float) : sizeof(T));
    if (a.mask.data) a.mask.data = static_cast<char const*>(a.mask.data) + hidden;
    return a;
}

// The queries of one position as rows of the key/value heads, and without keys that none sees.
template <class T>
Attention rows_of_groups(Attention const& given, int first_key) {
    Attention a = without_first<T>(given, first_key);
    if (a.heads > a.kv_heads) {
        int const group = a.heads / a.kv_heads;
        for (Heads* const each : {&a.q, &a.y}) each->row = each->head, each->head *= group;
        a.queries = group, a.heads = a.kv_heads;
        a.behind = a.ahead = kUnlimited;
    }
    return a;
}

template <class T, class S, Scores kScores, bool kSplit>
cudaError_t launch_hopper_decode(Attention const& given, KeySplits const& splits,
                                 device::Machine const& machine, cudaStream_t stream) {
    AttentionMaps maps;
    Attention const a = rows_of_groups<T>(given, splits.begin);
    if (!map_attention(maps, a, std::is_same_v<T, __half>, S::kRows, S::kKeys))
        return cudaErrorNotSupported;
    int64_t const tiles = a.batch * a.heads * splits.count;
    if (tiles > INT32_MAX / 2) return cudaErrorNotSupported;
    device::Grid const grid{std::min<int64_t>(machine.multiprocessors, tiles), dim3(S::kThreads), 1,
                            S::kSharedBytes};
    auto const kernel = hopper_decode_kernel<T, S, kSplit, kScores>;
    cudaError_t const status =
        device::launch(kernel, machine, grid, stream, a, splits, static_cast<int>(tiles), maps);
    if (status || splits.arrivals >= 0) return status;
    constexpr bool kPlain = kScores != Scores::kKeyMask;
    return launch_combine<T, S::kSize, kPlain>(given, splits, machine, stream);
}

// Tiles of few queries, whose keys may be split.
struct FewTiles {
    int64_t count;
    int rows;        // of results of each
    int most_added;  // rows of results, of all splits, that one block adds up
};

// Calls `launch` for a shape, S or Parts, and whether keys are split, with the splits.  Parts: the
// shape for splits of a step or two.  One batch of 1024 keys takes 6.8 us in 16 splits of 64 keys
// each, and 8.7 in four of 256.
template <class S, class Parts, class Launch>
cudaError_t launch_in_splits(Attention const& a, FewTiles const& tiles, int blocks, void* workspace,
                             Launch const& launch) {
    constexpr int kManySplits = 4;
    auto const split = [&](SplitUnits const& units) {
        KeySplits splits = split_keys(a, S::kSize, tiles.count, blocks, units, workspace);
        bool const few =
            tiles.count <= kArrivalHeads && tiles.rows * splits.count <= tiles.most_added;
        if (splits.count > 1 && few) splits.arrivals = arrivals_of(workspace);
        return splits;
    };
    if (tiles.count * kManySplits <= blocks && a.keys >= kMinManySplits) {
        KeySplits const splits = split({1, Parts::kKeys, Parts::kKeys});
        if (splits.count > 1) return launch.template operator()<Parts, true>(splits);
    }
    KeySplits const splits = split({1, S::kKeys});
    return splits.count > 1 ? launch.template operator()<S, true>(splits)
                            : launch.template operator()<S, false>(splits);
}

template <class T, class S, class Parts, Scores kScores>
cudaError_t launch_hopper_decode(Attention const& a, void* workspace, cudaStream_t stream) {
    device::Machine machine;
    if (cudaError_t const status = device::current_machine(machine)) return status;
    // 6 of 12 heads that share 2048 keys, in 32 splits: 8.5 us by the last block, 6.6 by a second
    // launch.
    FewTiles const tiles{a.batch * a.kv_heads, a.heads / a.kv_heads * a.queries, 64};
    auto const launch = [&]<class Shape, bool kSplit>(KeySplits const& splits) {
        return launch_hopper_decode<T, Shape, kScores, kSplit>(a, splits, machine, stream);
    };
    return launch_in_splits<S, Parts>(a, tiles, machine.multiprocessors, workspace, launch);
}

// Code for numbers of keys that are not given costs 0.8 us of 9 (one batch of 2048 keys).
template <class T, class S, class Parts = S>
cudaError_t launch_hopper_decode(Attention const& a, void* workspace, cudaStream_t stream) {
    if (a.mask.data)
        return launch_hopper_decode<T, MaskedShape<S>, MaskedShape<Parts>, Scores::kKeyMask>(
            a, workspace, stream);
    return a.lengths.data
               ? launch_hopper_decode<T, S, Parts, Scores::kCounted>(a, workspace, stream)
               : launch_hopper_decode<T, S, Parts, Scores::kScaled>(a, workspace, stream);
}

}  // namespace opfuse
