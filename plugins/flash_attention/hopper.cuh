// y = softmax(scale q k^T + mask) v for many queries on Hopper: TMA, wgmma, warp specialisation
// (after Shah et al. 2024, FlashAttention-3).
//
// Blocks stay on their multiprocessor and take one tile of queries after another.  One warp asks
// the copy engine for queries, keys, and values; warp groups have 64 queries each.  A group issues
// the product for the next scores before that of the present weights with their values, so that it
// computes a softmax while the tensor cores multiply; also from one tile to the next.
#pragma once
#include "../device/launch.cuh"
#include "hopper_tiles.cuh"

namespace opfuse {

// ---- kernels

// Where one lane of a consumer is in a tile: its rows are `row` and `row` + 8.
struct HopperRows {
    int row;
    int block, begin;  // of keys: the one that comes next, and the last one
    KeyRange all_see;  // the keys that each of the warp's rows sees
};

// Results of whole tiles.
template <class T, class S>
struct WholeResults {
    static constexpr int kParts = 1;  // of weights, that are multiplied
    __device__ static int query_of(int row) { return row; }
    template <class Walk>
    __device__ static void finish(Attention const&, Walk const&) {}

    __device__ void store(Attention const& a, HopperTile const& tile, int row,
                          float const (&out)[S::kSize / 8][4],
                          RunningSoftmax const& softmax) const {
        store_results<T, S::kSize>(a, head_of<T>(a.y, tile.batch, tile.head), row, out, softmax);
    }
};

// A consumer: warp group `group` has 64 rows of each tile.
template <class T, class S, Scores kScores, class Results = WholeResults<T, S>>
struct HopperConsumer {
    static constexpr int kBlocks = S::kKeys / 8;  // of scores, in registers
    static constexpr int kParts = Results::kParts;
    using Weights = uint32_t[kParts][kBlocks / 2][4];

    Attention const& a;
    HopperBarriers<S>& barriers;
    uint64_t queries, keys, values;  // descriptions of boxes; of the first place
    unsigned char const* masks;      // of the first place
    int lane, warp_row;
    Results results;
    uint32_t tiles = 0, steps = 0;  // begun; a step is a block of keys, and values are one behind

    __device__ HopperConsumer(Attention const& a, HopperBarriers<S>& barriers, unsigned char* q,
                              unsigned char* k, unsigned char* v, unsigned char* masks, int group,
                              Results const& results = {})
        : a(a),
          barriers(barriers),
          queries(device::describe_box(device::shared_address(q + group * 64 * device::kBoxBytes),
                                       S::kRows * device::kBoxBytes)),
          keys(device::describe_box(device::shared_address(k), S::kKeys * device::kBoxBytes)),
          values(device::describe_box(device::shared_address(v), S::kKeys * device::kBoxBytes)),
          masks(masks),
          lane(threadIdx.x % 32),
          warp_row(group * 64 + threadIdx.x / 32 % 4 * 16),
          results(results) {}

    __device__ static int stage(uint32_t step) { return step % S::kStages; }
    __device__ static void wait_for(uint64_t (&full)[S::kStages], uint32_t step) {
        device::wait(&full[stage(step)], step / S::kStages & 1);
    }
    __device__ void release(uint64_t* barrier) const {
        if (lane == 0) device::arrive(barrier);
    }

    __device__ HopperTile const& tile(uint32_t number) const {
        return barriers.tiles[number % kKeptTiles];
    }
    __device__ void store(HopperTile const& tile, float const (&out)[S::kSize / 8][4],
                          RunningSoftmax const& softmax) const {
        results.store(a, tile, tile.first_row + warp_row + lane / 4, out, softmax);
    }
    template <class Walk>
    __device__ void store_empty(Walk walk) const {
        float const none[S::kSize / 8][4] = {};
        HopperTile tile;
        while (walk.next(tile))
            if (tile.begin == tile.end) store(tile, none, RunningSoftmax{});
    }

    // Begins the tile of number `tiles`, if there is one.
    __device__ bool begin(HopperRows& rows) const {
        device::wait(&barriers.query_full[tiles % S::kTiles], tiles / S::kTiles & 1);
        HopperTile const& now = tile(tiles);
        if (now.batch < 0) return false;
        int const row = now.first_row + warp_row;
        rows = {row + lane / 4, now.end - 1, now.begin,
                keys_of_all(a, keys_of(now), results.query_of(row), results.query_of(row + 15))};
        return true;
    }
    // Goes on to the next block of keys: of the same tile, or of the next where there is a second
    // place for queries.
    __device__ bool follow(HopperRows& rows) {
        if (rows.block > rows.begin) {
            --rows.block;
            return true;
        }
        if constexpr (S::kTiles == 1) return false;
        ++tiles;
        return begin(rows);
    }

    __device__ void issue_scores_of(float (&s)[kBlocks][4]) const {
        issue_scores<T, S>(s, queries + tiles % S::kTiles * (S::kQueryBytes / 16),
                           keys + stage(steps) * (S::kTileBytes / 16));
    }
    __device__ void issue_results_of(float (&out)[S::kSize / 8][4], Weights const& p,
                                     uint32_t step) const {
        uint64_t const v = values + stage(step) * (S::kTileBytes / 16);
        wait_for(barriers.value_full, step);
        device::fence_products();
        add_values<T, S>(out, p[0], v);
        if constexpr (kParts == 2) add_values<T, S>(out, p[1], v);
        device::commit_products();
    }
    __device__ static void pack(Weights& p, float const (&s)[kBlocks][4]) {
        pack_weights<T>(p[0], s);
        if constexpr (kParts == 2) pack_rest<T>(p[1], p[0], s);
    }
    // What the scores were computed from is read.
    __device__ void release_scores(HopperRows const& rows) const {
        release(&barriers.key_empty[stage(steps)]);
        if (rows.block == rows.begin) release(&barriers.query_empty[tiles % S::kTiles]);
    }

    // Of a tile's batch: asked for where it is needed, for kept, also in the tile, it would cost
    // the loop its uniform registers (a fifth of the time at size 128).
    __device__ auto keys_of(HopperTile const& tile) const {
        return keys_of_batch_if<counts_keys(kScores)>(a, tile.batch);
    }

    // Scores to weights; gives what earlier results are to be scaled by.
    __device__ float2 weigh(float (&s)[kBlocks][4], RunningSoftmax& softmax,
                            HopperRows const& rows) const {
        int const begin = rows.block * S::kKeys;
        if constexpr (kScores == Scores::kAny) {
            HopperTile const& now = tile(tiles);
            scale_scores(s, a);
            MaskRows const masks = mask_rows<T>(a, keys_of(now), now.batch, now.head, rows.row);
            add_mask<T, true>(s, a, masks, begin + lane % 4 * 2);
            add_slopes(s, a, masks, begin + lane % 4 * 2);
        }
        if constexpr (kScores == Scores::kTileMask) {
            uint32_t const place = steps % S::kMasks;
            device::wait(&barriers.mask_full[place], steps / S::kMasks & 1);
            add_tile<T>(s, masks + place * S::kMaskBytes + warp_row * device::kBoxBytes, S::kRows,
                        a.scale);
            release(&barriers.mask_empty[place]);
        }
        if constexpr (kScores == Scores::kKeyMask) {
            uint32_t const place = steps % S::kMasks;
            device::wait(&barriers.mask_full[place], steps / S::kMasks & 1);
            add_keys(s, masks + place * S::kMaskBytes, a.scale);
            device::arrive(&barriers.mask_empty[place]);
        }
        if (begin < rows.all_see.begin || begin + S::kKeys > rows.all_see.end) {
            // Worked out where it is needed, which saves registers.
            auto const count = keys_of(tile(tiles));
            KeyRange const seen[2] = {keys_of_row(a, count, results.query_of(rows.row)),
                                      keys_of_row(a, count, results.query_of(rows.row + 8))};
            hide_scores(s, seen, begin + lane % 4 * 2);
        }
        constexpr bool kScaled = kScores == Scores::kScaled || kScores == Scores::kCounted;
        // A mask of fp16 does not come near the end of fp32.
        constexpr bool kFused =
            kScaled || kScores == Scores::kTileMask && std::is_same_v<T, __half>;
        return softmax.template update<kFused>(s, kScaled ? a.scale * kLog2E : kLog2E);
    }

    __device__ void run() {
        HopperRows rows;
        float out[S::kSize / 8][4];
        float s[kBlocks][4];
        Weights p;
        for (; begin(rows); ++tiles) {
            RunningSoftmax softmax;
            clear(out);
            wait_for(barriers.key_full, steps);
            device::fence_products();
            issue_scores_of(s);
            device::wait_for_products<0>();
            device::pin(s);
            release_scores(rows);
            weigh(s, softmax, rows);
            pack(p, s);
            bool ends = rows.block == rows.begin;
            while (follow(rows)) {
                ++steps;
                wait_for(barriers.key_full, steps);
                device::fence_products();
                issue_scores_of(s);
                issue_results_of(out, p, steps - 1);
                device::wait_for_products<1>();
                device::pin(s);
                release_scores(rows);
                RunningSoftmax const before = softmax;
                if (S::kTiles > 1 && ends) softmax = RunningSoftmax{};
                float2 const correction = weigh(s, softmax, rows);
                // The softmax comes before the wait for the products, which ptxas would move up.
                device::wait_after(softmax.sum[0] + softmax.sum[1],
                                   &barriers.value_full[stage(steps - 1)],
                                   (steps - 1) / S::kStages & 1);
                device::wait_for_products<0>();
                device::pin(out);
                release(&barriers.value_empty[stage(steps - 1)]);
                if (S::kTiles > 1 && ends) {
                    store(tile(tiles - 1), out, before);
                    clear(out);
                } else {
                    scale_rows(out, correction);
                }
                pack(p, s);
                ends = rows.block == rows.begin;
            }
            issue_results_of(out, p, steps);
            device::wait_for_products<0>();
            device::pin(out);
            release(&barriers.value_empty[stage(steps)]);
            ++steps;
            if constexpr (S::kTiles > 1) {
                store(tile(tiles - 1), out, softmax);
                return;
            }
            store(tile(tiles), out, softmax);
        }
    }
};

// The tiles of a block.  Its walk is made where it is needed: earlier, it takes registers.
template <class T, class S, Scores kScores, class Walk, class Results, class... Orders>
__device__ void run_block(Attention const& a, AttentionMaps const& maps, Results const& results,
                          Orders const&... orders) {
    extern __shared__ __align__(16) unsigned char shared[];
    unsigned char* const q = shared + (1024 - device::shared_address(shared) % 1024) % 1024;
    unsigned char* const k = q + S::kTiles * S::kQueryBytes;
    unsigned char* const v = k + S::kStages * S::kTileBytes;
    unsigned char* const masks = v + S::kStages * S::kTileBytes;
    auto& barriers = *reinterpret_cast<HopperBarriers<S>*>(q + S::kTilesBytes);
    static_assert(sizeof(barriers) <= S::kBarrierBytes);
    if (threadIdx.x == 0) barriers.init();
    if (threadIdx.x == 128 * S::kGroups) prefetch_maps(maps);
    __syncthreads();
    device::wait_in_turn();
    // Through a shuffle, so that the compiler knows that it is the same for all lanes.
    int const group = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x / 128), 0);
    Walk const walk(a, orders...);
    if (group == S::kGroups) {
        device::leave_registers<S::kLoaderRegisters>();
        if (threadIdx.x == 128 * S::kGroups)
            HopperLoader<S>{a, maps, barriers, q, k, v, masks}.run(walk);
    } else {
        device::take_registers<S::kRegisters>();
        HopperConsumer<T, S, kScores, Results> consumer(a, barriers, q, k, v, masks, group,
                                                        results);
        if (walk.has_empty()) consumer.store_empty(walk);
        consumer.run();
        results.finish(a, walk);
    }
}

template <class T, class S, Scores kScores>
__global__ void __launch_bounds__(S::kThreads, 1)
    hopper_kernel(Attention const a, TileOrder const order,
                  __grid_constant__ AttentionMaps const maps) {
    using Walk = TileWalk<S, counts_keys(kScores)>;
    run_block<T, S, kScores, Walk>(a, maps, WholeResults<T, S>{}, order);
}

// ---- launchers

template <class T, class S, Scores kScores>
cudaError_t launch_hopper(Attention const& a, AttentionMaps const& maps, cudaStream_t stream) {
    device::Machine machine;
    if (cudaError_t const status = device::current_machine(machine)) return status;
    int64_t const tiles = a.batch * a.heads * ((a.queries + S::kRows - 1) / S::kRows);
    if (tiles > INT32_MAX / 4) return cudaErrorNotSupported;
    int const blocks = static_cast<int>(std::min<int64_t>(machine.multiprocessors, tiles));
    device::Grid const grid{blocks, dim3(S::kThreads), 1, S::kSharedBytes};
    return device::launch(hopper_kernel<T, S, kScores>, machine, grid, stream, a,
                          order_tiles<S>(a, blocks), maps);
}

template <class T, class S, Scores kScores>
cudaError_t launch_hopper(Attention const& a, cudaStream_t stream) {
    AttentionMaps maps;
    constexpr bool kHalf = std::is_same_v<T, __half>;
    if (!map_attention(maps, a, kHalf, S::kRows, S::kKeys)) return cudaErrorNotSupported;
    if (kScores == Scores::kTileMask && !map_mask(maps, a, kHalf, S::kRows))
        return cudaErrorNotSupported;
    return launch_hopper<T, S, kScores>(a, maps, stream);
}

}  // namespace opfuse
