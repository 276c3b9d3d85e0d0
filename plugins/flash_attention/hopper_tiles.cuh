// The Hopper kernel's tiles: their size, their order, and the warp that has them loaded.
#pragma once
#include <algorithm>
#include <limits>

#include "hopper_parts.cuh"

namespace opfuse {

// How a block works.  kSize: the head sizes rounded up to an instance; kGroups: of 128 threads,
// each of which multiplies 64 queries; kKeys: of one step; kStages: of keys, and of values, in
// shared memory; kTiles: of queries, there; kMasks: tiles of a mask, there.
template <int kSize_, int kGroups_, int kKeys_, int kStages_, int kTiles_, int kMasks_ = 0>
struct HopperShape {
    static constexpr int kSize = kSize_, kGroups = kGroups_, kKeys = kKeys_;
    static constexpr int kStages = kStages_, kTiles = kTiles_, kMasks = kMasks_;
    static constexpr bool kMaskTiles = kMasks > 0;  // which the copy engine brings
    static constexpr int kMaskWriters = 1, kMaskReaders = 4 * kGroups;  // that arrive
    // One more group, of which one warp loads, gives registers to the others; a single group takes
    // none, and has that warp alone beside it.
    static constexpr int kThreads = 128 * kGroups + (kGroups == 1 ? 32 : 128);
    // Together no more than a block has when it starts: the compiler rounds down to 168 of 384
    // threads each, and to 128 of 512.
    static constexpr int kLoaderRegisters = kGroups == 2 ? 24 : 32;
    static constexpr int kRegisters = kGroups == 2 ? 240 : 160;
    static_assert(kGroups >= 1 && kGroups <= 3);
    static_assert(kGroups * kRegisters + kLoaderRegisters <= (kGroups == 2 ? 504 : 512));
    static constexpr int kRows = 64 * kGroups;
    static constexpr int kTileBytes =
        kKeys * boxes_of(kSize) * device::kBoxBytes;  // of keys or values
    static constexpr int kQueryBytes = kRows * boxes_of(kSize) * device::kBoxBytes;
    static constexpr int kMaskBytes = kRows * boxes_of(kKeys) * device::kBoxBytes;
    static constexpr int kTilesBytes =
        kTiles * kQueryBytes + 2 * kStages * kTileBytes + kMasks * kMaskBytes;
    static constexpr int kBarrierBytes = 384;
    static constexpr int kSharedBytes = kTilesBytes + kBarrierBytes + 1024;  // to align the tiles
};

struct HopperTile {
    int batch, head, kv_head;  // `batch` is below 0 where no tile is left
    int first_row;
    int begin, end;  // of the blocks of keys that any row sees, or that are a split
    int split;
};

inline constexpr int kWholeTile = -1;  // as `split`, where some are and some are not

// How many tiles are known: those that have a place; the one before, whose results are stored when
// the scores of the next are there, all of them perhaps, so that yet another one has its place.
inline constexpr int kKeptTiles = 4;

// Of each place: it holds what was asked for; everyone has read it.
template <class S>
struct HopperBarriers {
    HopperTile tiles[kKeptTiles];
    uint64_t query_full[S::kTiles], query_empty[S::kTiles];
    uint64_t key_full[S::kStages], key_empty[S::kStages];
    uint64_t value_full[S::kStages], value_empty[S::kStages];
    uint64_t mask_full[S::kMasks + 1], mask_empty[S::kMasks + 1];  // one that nobody uses

    __device__ void init() {
        constexpr int kReaders = 4 * S::kGroups;  // warps
        for (int i = 0; i < S::kTiles; ++i) {
            device::init_barrier(&query_full[i], 1);
            device::init_barrier(&query_empty[i], kReaders);
        }
        for (int i = 0; i < S::kStages; ++i) {
            device::init_barrier(&key_full[i], 1);
            device::init_barrier(&key_empty[i], kReaders);
            device::init_barrier(&value_full[i], 1);
            device::init_barrier(&value_empty[i], kReaders);
        }
        for (int i = 0; i < S::kMasks; ++i) {
            device::init_barrier(&mask_full[i], S::kMaskWriters);
            device::init_barrier(&mask_empty[i], S::kMaskReaders);
        }
        device::publish_barriers();
    }
};

// Tiles in the order in which they are taken: all tiles of a set of heads, whose keys stay in the
// L2 cache, then those of the next set.  A set begins at a multiple of `set_slots`, and has those
// with the most causal keys first.
struct TileOrder {
    int heads;      // batch * heads
    int tiles;      // of a head
    int set_heads;  // heads of a set
    int set_slots;  // at least set_heads * tiles
    int slots;      // of all sets
};

// The tile of a head of all batches, counted from the last one.
template <class S, bool kCounts>
__device__ void fill_tile(HopperTile& tile, Attention const& a, TileOrder const& order,
                          int head_index, int from_last) {
    tile.batch = head_index / a.heads;
    tile.head = head_index % a.heads;
    tile.kv_head = tile.head / (a.heads / a.kv_heads);
    tile.first_row = (order.tiles - 1 - from_last) * S::kRows;
    tile.split = 0;
    auto const count = keys_of_batch_if<kCounts>(a, tile.batch);
    KeyRange const keys =
        keys_of_any(a, count, tile.first_row, min(tile.first_row + S::kRows, a.queries) - 1);
    tile.begin = keys.begin / S::kKeys;
    tile.end = max(tile.begin, (keys.end + S::kKeys - 1) / S::kKeys);
}

// The tiles of this block, one of each round.  Every second round runs backwards: what was dealt
// the largest tile gets the smallest next.
template <class S, bool kCounts>
class TileWalk {
  public:
    __device__ TileWalk(Attention const& a, TileOrder const& order) : a_(a), order_(order) {}

    // False when there is none left.
    __device__ bool next(HopperTile& tile) {
        for (; first_ < order_.slots; first_ += gridDim.x) {
            int const place = backwards_ ? gridDim.x - 1 - blockIdx.x : blockIdx.x;
            int const slot = first_ + place;
            backwards_ = !backwards_;
            int const set = slot / order_.set_slots, inside = slot % order_.set_slots;
            int const heads = min(order_.set_heads, order_.heads - set * order_.set_heads);
            if (slot >= order_.slots || inside >= heads * order_.tiles) continue;
            fill_tile<S, kCounts>(tile, a_, order_, set * order_.set_heads + inside % heads,
                                  inside / heads);
            first_ += gridDim.x;
            return true;
        }
        return false;
    }

    // Whether there may be tiles whose rows see no keys: the first one of a head is such.
    __device__ bool has_empty() const {
        if (kCounts && a_.lengths.data) return true;
        HopperTile first;
        fill_tile<S, kCounts>(first, a_, order_, 0, order_.tiles - 1);
        return first.begin == first.end;
    }

  private:
    Attention const& a_;
    TileOrder const& order_;
    int first_ = 0;
    bool backwards_ = false;
};

// What a tile's queries are: rows of one head.
template <class S>
struct RowsOfHead {
    __device__ void load(unsigned char* to, CUtensorMap const& map, uint64_t* full,
                         HopperTile const& tile) const {
        load_rows<S>(to, map, full, S::kRows, tile.first_row, tile.head, tile.batch);
    }
};

// Has the copy engine load keys and values from the last block to the first, and the next tile's
// queries; tells the others which tile it is.
template <class S, class Queries = RowsOfHead<S>>
struct HopperLoader {
    Attention const& a;
    AttentionMaps const& maps;
    HopperBarriers<S>& barriers;
    unsigned char *q, *k, *v, *masks;
    Queries queries{};
    uint32_t tiles = 0, steps = 0;

    // The next place for queries, once it is free.
    __device__ uint32_t announce(HopperTile const& tile) {
        static_assert(S::kTiles + 2 <= kKeptTiles);
        uint32_t const number = tiles++, place = number % S::kTiles;
        device::wait(&barriers.query_empty[place], ~(number / S::kTiles) & 1);
        barriers.tiles[number % kKeptTiles] = tile;
        return place;
    }
    __device__ void load_queries(HopperTile const& tile) {
        uint32_t const place = announce(tile);
        queries.load(q + place * S::kQueryBytes, maps.q, &barriers.query_full[place], tile);
    }
    __device__ void load_mask(HopperTile const& tile, int first) const {
        uint32_t const place = steps % S::kMasks;
        uint64_t* const full = &barriers.mask_full[place];
        device::wait(&barriers.mask_empty[place], ~(steps / S::kMasks) & 1);
        device::arrive_expecting(full, S::kMaskBytes);
#pragma unroll
        for (int box = 0; box < boxes_of(S::kKeys); ++box)
            device::copy_box(masks + place * S::kMaskBytes + box * S::kRows * device::kBoxBytes,
                             maps.mask, full, first + box * device::kBoxColumns, tile.first_row,
                             a.mask.head ? tile.head : 0, a.mask.batch ? tile.batch : 0);
    }
    // `before_values` runs when the keys are asked for.
    template <class Work>
    __device__ void load_block(HopperTile const& tile, int block, Work before_values) {
        uint32_t const stage = steps % S::kStages, parity = ~(steps / S::kStages) & 1;
        int const first = block * S::kKeys;
        device::wait(&barriers.key_empty[stage], parity);
        load_rows<S>(k + stage * S::kTileBytes, maps.k, &barriers.key_full[stage], S::kKeys, first,
                     tile.kv_head, tile.batch);
        if constexpr (S::kMaskTiles) load_mask(tile, first);
        ++steps;
        before_values();
        device::wait(&barriers.value_empty[stage], parity);
        load_rows<S>(v + stage * S::kTileBytes, maps.v, &barriers.value_full[stage], S::kKeys,
                     first, tile.kv_head, tile.batch);
    }
    template <class Walk>
    __device__ void run(Walk walk) {
        auto const next = [&](HopperTile& tile) {  // that has keys
            bool found = walk.next(tile);
            while (found && tile.begin == tile.end) found = walk.next(tile);
            return found;
        };
        HopperTile tile, later;
        auto const nothing = [] {};
        bool more = next(tile);
        if (more && S::kTiles > 1) load_queries(tile);
        while (more) {
            load_block(tile, tile.end - 1, [&] {
                if constexpr (S::kTiles == 1) load_queries(tile);
            });
            if constexpr (S::kTiles > 1) {
                more = next(later);
                if (more) load_queries(later);
            }
#pragma unroll 1  // registers
            for (int block = tile.end - 2; block >= tile.begin; --block)
                load_block(tile, block, nothing);
            if constexpr (S::kTiles == 1) more = next(later);
            tile = later;
        }
        tile.batch = -1;
        device::arrive(&barriers.query_full[announce(tile)]);
    }
};

// Of keys and values that stay in the L2 cache, whose halves keep copies; and of all of them.
inline constexpr int64_t kSetBytes = 24 << 20, kAllBytes = 36 << 20;

// All tiles of the heads that share keys one after another: they are read at the same time.
template <class S>
TileOrder order_by_keys(Attention const& a) {
    int const group = a.heads / a.kv_heads;
    TileOrder order{static_cast<int>(a.batch * a.heads), (a.queries + S::kRows - 1) / S::kRows};
    order.set_heads = group;
    order.set_slots = group * order.tiles;
    order.slots = order.heads * order.tiles;
    return order;
}

// How many heads form a set.  A set of causal tiles is dealt out in rounds of its own, of which
// each block has as many forwards as backwards: best where they are full.
template <class S>
TileOrder order_tiles(Attention const& a, int blocks) {
    TileOrder order = order_by_keys<S>(a);
    if (a.ahead == kUnlimited) return order;
    int const group = order.set_heads;
    int64_t const head_bytes = int64_t{4} * a.keys * S::kSize, round_pair = 2 * blocks;
    bool const all_stay = order.heads / group * head_bytes <= kAllBytes;
    // Few queries of many keys: a set that fills no round costs more than what L2 spares.
    int64_t const least_heads = (round_pair + order.tiles - 1) / order.tiles;
    int64_t const groups = std::max(kSetBytes / head_bytes, (least_heads + group - 1) / group);
    int64_t const most = all_stay ? order.heads : std::min<int64_t>(groups * group, order.heads);
    auto const slots = [&](int64_t heads) {
        return (heads * order.tiles + round_pair - 1) / round_pair * round_pair;
    };
    int64_t fewest = std::numeric_limits<int64_t>::max();
    for (int heads = group; heads <= most; heads += group) {
        int64_t const all = order.heads / heads * slots(heads) + slots(order.heads % heads);
        if (all < fewest) fewest = all, order.set_heads = heads;
    }
    order.set_slots = static_cast<int>(slots(order.set_heads));
    order.slots = (order.heads + order.set_heads - 1) / order.set_heads * order.set_slots;
    return order;
}

}  // namespace opfuse
