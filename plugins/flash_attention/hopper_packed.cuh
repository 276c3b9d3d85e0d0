// The same for several queries of heads that share keys: all heads of a query are neighbouring rows
// of a tile, so that keys and values are read once for as many queries as fit.
#pragma once
#include "hopper_decode.cuh"

namespace opfuse {

// ---- kernels

// How the queries of a group of heads are rows: row = query * heads + head, from the first query of
// a tile on.
struct Packing {
    int heads;    // that share a key/value head
    int queries;  // of a tile
    int tiles;    // of a group
};

// A tile for each key/value head, `Packing::queries` queries, and split of its keys.
template <class S, bool kCounts>
struct PackedWalk {
    Attention const& a;
    KeySplits const& splits;
    Packing const& packing;
    int count;  // of all tiles
    int index = blockIdx.x;

    __device__ bool next(HopperTile& tile) {
        if (index >= count) return false;
        int const inside = index / packing.tiles;  // neighbours read the same keys
        int const head_index = inside / splits.count;
        int const first = index % packing.tiles * packing.queries;
        tile.split = inside % splits.count;
        tile.batch = head_index / a.kv_heads;
        tile.kv_head = head_index % a.kv_heads;
        tile.head = tile.kv_head * packing.heads;
        tile.first_row = first * packing.heads;
        KeyRange const seen = keys_of_any(a, keys_of_batch_if<kCounts>(a, tile.batch), first,
                                          min(first + packing.queries, a.queries) - 1);
        int const blocks = splits.keys / S::kKeys, begin = tile.split * blocks;
        tile.begin = max(begin, seen.begin / S::kKeys);
        tile.end = max(tile.begin, min(begin + blocks, (seen.end + S::kKeys - 1) / S::kKeys));
        index += gridDim.x;
        return true;
    }
};

template <class S>
struct PackedQueries {
    Packing const& packing;

    __device__ void load(unsigned char* to, CUtensorMap const& map, uint64_t* full,
                         HopperTile const& tile) const {
        int const rows = packing.heads * packing.queries;
        device::arrive_expecting(full, rows * boxes_of(S::kSize) * device::kBoxBytes);
#pragma unroll
        for (int box = 0; box < boxes_of(S::kSize); ++box)
            device::copy_groups(to + box * S::kRows * device::kBoxBytes, map, full,
                                box * device::kBoxColumns, tile.first_row / packing.heads,
                                tile.kv_head, tile.batch);
    }
};

// The rows of a tile that one lane has results of.
template <class T>
struct PackedRows {
    Attention const& a;
    Packing const& packing;
    HopperTile const& tile;
    int row;  // of all tiles

    __device__ int query() const { return row / packing.heads; }
    __device__ int head() const { return row % packing.heads; }
    __device__ T* start() const {
        return head_of<T>(a.y, tile.batch, tile.head + head()) + query() * a.y.row;
    }
    __device__ bool there() const {
        int const inside = row - tile.first_row;
        return inside < packing.heads * packing.queries && row < packing.heads * a.queries;
    }
    __device__ void next() { row += 8; }
};

// Results of splits, as SplitResults has them, or of whole tiles.
template <class T, class S, bool kSplit>
struct PackedResults {
    static constexpr int kParts = 2;  // of weights, as of SplitResults

    KeySplits const& splits;
    Packing const& packing;

    __device__ int query_of(int row) const { return row / packing.heads; }

    __device__ void store(Attention const& a, HopperTile const& tile, int row,
                          float const (&out)[S::kSize / 8][4], RunningSoftmax softmax) const {
        PackedRows<T> rows{a, packing, tile, row};
        if constexpr (!kSplit) {
            store_rows<T, S::kSize>(a, rows, out, softmax);
        } else {
            softmax.finish();
            int const kv_index = tile.batch * a.kv_heads + tile.kv_head;
            int64_t const first =
                first_result(kv_index, tile.split, splits, packing.heads * a.queries);
#pragma unroll
            for (int r = 0; r < 2; ++r, rows.next()) {
                int64_t const own = first + rows.head() * a.queries + rows.query();
                store_split<S>(splits, own, rows.there(), out, softmax, r);
            }
        }
    }
};

// Adds up the splits of a tile, of which this block has the last one.
template <class T, class S, bool kPlain>
__device__ void combine_tile(Attention const& a, KeySplits const& splits, Packing const& packing) {
    constexpr int kLanes = kCombineLanes<S::kSize>, kAtOnce = 128 / kLanes;
    int const kv_index = blockIdx.x / (packing.tiles * splits.count);
    int const first = blockIdx.x % packing.tiles * packing.queries;
    int const rows = min(packing.queries, a.queries - first) * packing.heads;
    for (int row = threadIdx.x / kLanes; row < (rows + kAtOnce - 1) / kAtOnce * kAtOnce;
         row += kAtOnce) {
        int const own = min(row, rows - 1);  // lanes of a warp go together
        int const query = first + own / packing.heads, head = own % packing.heads;
        combine_row<T, S::kSize, kPlain>(a, splits, kv_index, head * a.queries + query,
                                         threadIdx.x % kLanes);
    }
}

template <class T, class S, bool kSplit, Scores kScores>
__global__ void __launch_bounds__(S::kThreads, 1)
    hopper_packed_kernel(Attention const a, KeySplits const splits, Packing const packing,
                         int tiles, __grid_constant__ AttentionMaps const maps) {
    extern __shared__ __align__(16) unsigned char shared[];
    unsigned char* const q = shared + (1024 - device::shared_address(shared) % 1024) % 1024;
    unsigned char* const k = q + S::kTiles * S::kQueryBytes;
    unsigned char* const v = k + S::kStages * S::kTileBytes;
    unsigned char* const masks = v + S::kStages * S::kTileBytes;
    auto& barriers = *reinterpret_cast<HopperBarriers<S>*>(q + S::kTilesBytes);
    static_assert(sizeof(barriers) <= S::kBarrierBytes);
    constexpr bool kCounts = counts_keys(kScores), kMasked = kScores == Scores::kKeyMask;
    PackedWalk<S, kCounts> const walk{a, splits, packing, tiles};
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
        if (threadIdx.x == 128)
            HopperLoader<S, PackedQueries<S>>{a, maps, barriers, q,
                                              k, v,    nullptr,  PackedQueries<S>{packing}}
                .run(walk);
        if constexpr (kMasked)
            if (threadIdx.x >= 160) load_key_masks<T, S>(a, barriers, masks, walk);
        return;
    }
    using Results = PackedResults<T, S, kSplit>;
    HopperConsumer<T, S, kScores, Results> consumer(a, barriers, q, k, v, masks, group,
                                                    Results{splits, packing});
    consumer.store_empty(walk);
    consumer.run();
    if constexpr (kSplit) {
        int const counter = blockIdx.x / (packing.tiles * splits.count) * packing.tiles +
                            blockIdx.x % packing.tiles;
        if (splits.arrivals >= 0 && arrives_last<S>(splits, counter))
            combine_tile<T, S, !kMasked>(a, splits, packing);
    }
}

// ---- launchers

template <class T, class S, Scores kScores, bool kSplit>
cudaError_t launch_packed(Attention const& given, KeySplits const& splits, Packing const& packing,
                          device::Machine const& machine, cudaStream_t stream) {
    constexpr bool kHalf = std::is_same_v<T, __half>, kPlain = kScores != Scores::kKeyMask;
    AttentionMaps maps;
    Attention const a = without_first<T>(given, splits.begin);
    if (!map_attention(maps, a, kHalf, S::kRows, S::kKeys) ||
        !map_groups(maps, a, kHalf, packing.queries))
        return cudaErrorNotSupported;
    int64_t const tiles = a.batch * a.kv_heads * packing.tiles * splits.count;
    if (tiles > INT32_MAX / 2) return cudaErrorNotSupported;
    device::Grid const grid{std::min<int64_t>(machine.multiprocessors, tiles), dim3(S::kThreads), 1,
                            S::kSharedBytes};
    auto const kernel = hopper_packed_kernel<T, S, kSplit, kScores>;
    cudaError_t const status = device::launch(kernel, machine, grid, stream, a, splits, packing,
                                              static_cast<int>(tiles), maps);
    if (status || splits.arrivals >= 0) return status;
    return launch_combine<T, S::kSize, kPlain>(given, splits, machine, stream);
}

template <class T, class S, class Parts, Scores kScores>
cudaError_t launch_packed(Attention const& a, void* workspace, cudaStream_t stream) {
    device::Machine machine;
    if (cudaError_t const status = device::current_machine(machine)) return status;
    int const heads = a.heads / a.kv_heads, most = S::kRows / heads;
    Packing const packing{heads, std::min(most, a.queries), (a.queries + most - 1) / most};
    FewTiles const tiles{a.batch * a.kv_heads * packing.tiles, heads * packing.queries, 64};
    int const blocks = machine.multiprocessors;
    // Where keys are split in fewer, tiles of more queries are faster.
    if (a.queries > kDecodeQueries && 6 * tiles.count > blocks) return cudaErrorNotSupported;
    auto const launch = [&]<class Shape, bool kSplit>(KeySplits const& splits) {
        return launch_packed<T, Shape, kScores, kSplit>(a, splits, packing, machine, stream);
    };
    return launch_in_splits<S, Parts>(a, tiles, blocks, workspace, launch);
}

template <class T, class S, class Parts = S>
cudaError_t launch_packed(Attention const& a, void* workspace, cudaStream_t stream) {
    if (a.mask.data)
        return launch_packed<T, MaskedShape<S>, MaskedShape<Parts>, Scores::kKeyMask>(a, workspace,
                                                                                      stream);
    return a.lengths.data ? launch_packed<T, S, Parts, Scores::kCounted>(a, workspace, stream)
                          : launch_packed<T, S, Parts, Scores::kScaled>(a, workspace, stream);
}

}  // namespace opfuse
