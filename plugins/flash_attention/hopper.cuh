// y = softmax(scale q k^T + mask) v for many queries on Hopper: TMA, wgmma, warp specialisation
// (after Shah et al. 2024, FlashAttention-3).
//
// Blocks stay on their multiprocessor and take one tile of queries after another.  One warp asks
// the copy engine for queries, keys, and values; warp groups have 64 queries each.  A group issues
// the product for the next scores before that of the present weights with their values, so that it
// computes a softmax while the tensor cores multiply.
#pragma once
#include "../device/launch.cuh"
#include "hopper_tiles.cuh"

namespace opfuse {

// ---- kernels

// A tile as one lane of a consumer sees it: its rows are `row` and `row` + 8.
struct HopperRows {
    int batch, head;
    int row;
    int block, begin;  // of keys: the one that comes next, and the last one
    KeyRange all_see;  // the keys that each of the warp's rows sees
};

// A consumer: warp group `group` has 64 rows of each tile.
// kPlain: no mask, no softcap, and a positive scale.
template <class T, class S, bool kPlain>
struct HopperConsumer {
    static constexpr int kBlocks = S::kKeys / 8;  // of scores, in registers

    Attention const& a;
    HopperBarriers<S>& barriers;
    uint64_t queries, keys, values;  // descriptions of boxes; of the first place
    int lane, warp_row;
    uint32_t tiles = 0, steps = 0;  // begun; a step is a block of keys, and values are one behind

    __device__ HopperConsumer(Attention const& a, HopperBarriers<S>& barriers, unsigned char* q,
                              unsigned char* k, unsigned char* v, int group)
        : a(a),
          barriers(barriers),
          queries(device::describe_box(device::shared_address(q + group * 64 * device::kBoxBytes),
                                       S::kRows * device::kBoxBytes)),
          keys(device::describe_box(device::shared_address(k), S::kKeys * device::kBoxBytes)),
          values(device::describe_box(device::shared_address(v), S::kKeys * device::kBoxBytes)),
          lane(threadIdx.x % 32),
          warp_row(group * 64 + threadIdx.x / 32 % 4 * 16) {}

    __device__ static int stage(uint32_t step) { return step % S::kStages; }
    __device__ static void wait_for(uint64_t (&full)[S::kStages], uint32_t step) {
        device::wait(&full[stage(step)], step / S::kStages & 1);
    }
    __device__ void release(uint64_t* barrier) const {
        if (lane == 0) device::arrive(barrier);
    }

    __device__ void store(HopperRows const& tile, float const (&out)[S::kSize / 8][4],
                          RunningSoftmax const& softmax) const {
        store_results<T, S::kSize>(a, head_of<T>(a.y, tile.batch, tile.head), tile.row, out,
                                   softmax);
    }

    // The next tile that has keys; those that have none are written at once.
    __device__ bool next(TileWalk<S>& walk, HopperRows& rows) const {
        HopperTile tile;
        while (walk.next(tile)) {
            int const row = tile.first_row + warp_row;
            rows.batch = tile.batch, rows.head = tile.head;
            rows.row = row + lane / 4;
            rows.block = tile.end - 1, rows.begin = tile.begin;
            rows.all_see = keys_of_all(a, row, row + 15);
            if (tile.begin < tile.end) return true;
            float const none[S::kSize / 8][4] = {};
            store(rows, none, RunningSoftmax{});
        }
        return false;
    }

    __device__ void wait_for_queries() const {
        device::wait(&barriers.query_full[tiles % S::kTiles], tiles / S::kTiles & 1);
    }
    __device__ void issue_scores_of(float (&s)[kBlocks][4]) const {
        issue_scores<T, S>(s, queries + tiles % S::kTiles * (S::kQueryBytes / 16),
                           keys + stage(steps) * (S::kTileBytes / 16));
    }
    __device__ void issue_results_of(float (&out)[S::kSize / 8][4],
                                     uint32_t const (&p)[kBlocks / 2][4], uint32_t step) const {
        wait_for(barriers.value_full, step);
        device::fence_products();
        issue_results<T, S>(out, p, values + stage(step) * (S::kTileBytes / 16));
    }
    // What the scores were computed from is read.
    __device__ void release_scores(HopperRows const& tile) const {
        release(&barriers.key_empty[stage(steps)]);
        if (tile.block == tile.begin) release(&barriers.query_empty[tiles % S::kTiles]);
    }

    // Scores to weights; gives what earlier results are to be scaled by.
    __device__ float2 weigh(float (&s)[kBlocks][4], RunningSoftmax& softmax,
                            HopperRows const& tile) const {
        int const begin = tile.block * S::kKeys;
        if constexpr (!kPlain) {
            scale_scores(s, a);
            MaskRows const masks = mask_rows<T>(a, tile.batch, tile.head, tile.row);
            add_mask<T, true>(s, a, masks, begin + lane % 4 * 2);
            add_slopes(s, a, masks, begin + lane % 4 * 2);
        }
        if (begin < tile.all_see.begin || begin + S::kKeys > tile.all_see.end) {
            // Worked out where it is needed, which saves registers.
            KeyRange const seen[2] = {keys_of_row(a, tile.row), keys_of_row(a, tile.row + 8)};
            hide_scores(s, seen, begin + lane % 4 * 2);
        }
        return softmax.template update<kPlain>(s, kPlain ? a.scale * kLog2E : kLog2E);
    }

    __device__ void run(TileWalk<S> walk) {
        HopperRows tile;
        float out[S::kSize / 8][4];
        float s[kBlocks][4];
        uint32_t p[kBlocks / 2][4];
        for (; next(walk, tile); ++tiles) {
            RunningSoftmax softmax;
            clear(out);
            wait_for_queries();
            wait_for(barriers.key_full, steps);
            device::fence_products();
            issue_scores_of(s);
            device::wait_for_products<0>();
            device::pin(s);
            release_scores(tile);
            weigh(s, softmax, tile);
            pack_weights<T>(p, s);
            while (tile.block-- > tile.begin) {
                ++steps;
                wait_for(barriers.key_full, steps);
                device::fence_products();
                issue_scores_of(s);
                issue_results_of(out, p, steps - 1);
                device::wait_for_products<1>();
                device::pin(s);
                release_scores(tile);
                float2 const correction = weigh(s, softmax, tile);
                // The softmax comes before the wait for the products, which ptxas would move up.
                device::wait_after(softmax.sum[0] + softmax.sum[1],
                                   &barriers.value_full[stage(steps - 1)],
                                   (steps - 1) / S::kStages & 1);
                device::wait_for_products<0>();
                device::pin(out);
                release(&barriers.value_empty[stage(steps - 1)]);
                scale_rows(out, correction);
                pack_weights<T>(p, s);
            }
            issue_results_of(out, p, steps);
            device::wait_for_products<0>();
            device::pin(out);
            release(&barriers.value_empty[stage(steps)]);
            ++steps;
            store(tile, out, softmax);
        }
    }
};

template <class T, class S, bool kPlain>
__global__ void __launch_bounds__(S::kThreads, 1)
    hopper_kernel(Attention const a, TileOrder const order,
                  __grid_constant__ AttentionMaps const maps) {
    extern __shared__ __align__(16) unsigned char shared[];
    unsigned char* const q = shared + (1024 - device::shared_address(shared) % 1024) % 1024;
    unsigned char* const k = q + S::kTiles * S::kQueryBytes;
    unsigned char* const v = k + S::kStages * S::kTileBytes;
    auto& barriers = *reinterpret_cast<HopperBarriers<S>*>(v + S::kStages * S::kTileBytes);
    if (threadIdx.x == 0) barriers.init();
    __syncthreads();
    // Through a shuffle, so that the compiler knows that it is the same for all lanes.
    int const group = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x / 128), 0);
    TileWalk<S> const walk(a, order);
    if (group == S::kGroups) {
        device::leave_registers<S::kLoaderRegisters>();
        if (threadIdx.x == 128 * S::kGroups) HopperLoader<S>{maps, barriers, q, k, v}.run(walk);
    } else {
        device::take_registers<S::kRegisters>();
        HopperConsumer<T, S, kPlain>(a, barriers, q, k, v, group).run(walk);
    }
}

// ---- launchers

template <class T, class S, bool kPlain>
cudaError_t launch_hopper(Attention const& a, AttentionMaps const& maps, cudaStream_t stream) {
    device::Machine machine;
    if (cudaError_t const status = device::current_machine(machine)) return status;
    int64_t const tiles = a.batch * a.heads * ((a.queries + S::kRows - 1) / S::kRows);
    if (tiles > INT32_MAX / 4) return cudaErrorNotSupported;
    int const blocks = static_cast<int>(std::min<int64_t>(machine.multiprocessors, tiles));
    device::Grid const grid{blocks, dim3(S::kThreads), 1, S::kSharedBytes};
    return device::launch(hopper_kernel<T, S, kPlain>, device::kInOrder, grid, stream, a,
                          order_tiles<S>(a, blocks), maps);
}

template <class T, class S, bool kPlain>
cudaError_t launch_hopper(Attention const& a, cudaStream_t stream) {
    AttentionMaps maps;
    if (!map_attention(maps, a, std::is_same_v<T, __half>, S::kRows, S::kKeys))
        return cudaErrorNotSupported;
    return launch_hopper<T, S, kPlain>(a, maps, stream);
}

}  // namespace opfuse
