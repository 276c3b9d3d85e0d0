// The same where the last round of tiles would leave multiprocessors idle: the tiles that fill no
// round are shared out among all blocks by their keys (after "Stream-K", Osama et al. 2023).  Each
// block begins with its share, so that its results have long been written when they are added up.
#pragma once
#include "arrivals.h"
#include "hopper.cuh"
#include "hopper_choice.h"

namespace opfuse {

// ---- kernels

// Blocks' shares of a rest are equally many steps; a step is a block of keys of one tile.
struct SharedRest {
    int tiles;          // the first ones: fewer than blocks
    int steps;          // of each tile
    float4* parts;      // see RestResults
    int arrivals = -1;  // the set that counts the parts that are there

    __device__ int first_step(int block) const {
        return block * tiles * steps / static_cast<int>(gridDim.x);
    }
    __device__ int block_of(int step) const {
        return ((step + 1) * static_cast<int>(gridDim.x) - 1) / (tiles * steps);
    }
};

// The tiles of this block: its share of the rest, and one of each whole round.
template <class S>
class RestWalk {
  public:
    __device__ RestWalk(Attention const& a, TileOrder const& order, SharedRest const& rest)
        : a_(a),
          order_(order),
          rest_(rest),
          step_(rest.first_step(blockIdx.x)),
          end_(rest.first_step(blockIdx.x + 1)),
          whole_(rest.tiles + blockIdx.x) {}

    // False when there is none left.
    __device__ bool next(HopperTile& tile) {
        if (step_ < end_) {
            int const number = step_ / rest_.steps, begin = step_ % rest_.steps;
            fill(tile, number);
            tile.split = number;
            tile.begin = begin;
            tile.end = min(begin + end_ - step_, rest_.steps);
            step_ += tile.end - begin;
            return true;
        }
        if (whole_ >= order_.heads * order_.tiles) return false;
        fill(tile, whole_);
        tile.split = kWholeTile;
        whole_ += gridDim.x;
        return true;
    }

    __device__ static bool has_empty() { return false; }

  private:
    __device__ void fill(HopperTile& tile, int number) const {
        int const set = number / order_.set_slots, inside = number % order_.set_slots;
        fill_tile<S, false>(tile, a_, order_, set * order_.set_heads + inside % order_.set_heads,
                            inside / order_.set_heads);
    }

    Attention const& a_;
    TileOrder const& order_;
    SharedRest const& rest_;
    int step_, end_, whole_;
};

// Of each tile and warp group, the parts whose results are there; the last one begins anew.
template <class S>
__device__ unsigned rest_arrivals[kArrivalSets][kMostRest * S::kGroups];

// Results of whole tiles, and of parts.  A part is [kSize / 8 + 1, 128 lanes] of four: results as a
// lane holds them, then the maxima and sums of its rows.
template <class T, class S>
struct RestResults {
    static constexpr int kParts = 1;  // of weights
    static constexpr int kVectors = S::kSize / 8;
    static_assert(S::kRows <= kRestRows && S::kSize <= kRestSize);
    __device__ static int query_of(int row) { return row; }

    SharedRest const& rest;

    __device__ void store(Attention const& a, HopperTile const& tile, int row,
                          float const (&out)[S::kSize / 8][4],
                          RunningSoftmax const& softmax) const {
        if (tile.split == kWholeTile) return store_whole(a, tile, row, out, softmax);
        float4* const own = part(blockIdx.x, tile.split);
#pragma unroll
        for (int i = 0; i < kVectors; ++i)
            own[128 * i] = {out[i][0], out[i][1], out[i][2], out[i][3]};
        own[128 * kVectors] = {softmax.max[0], softmax.max[1], softmax.sum[0], softmax.sum[1]};
    }
    // The last warp group to ask that has a part of a tile's rows adds them up.  All ask when they
    // have nothing else to do: what others wrote is there by then.
    __device__ void finish(Attention const& a, RestWalk<S> walk) const {
        int const row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;
        HopperTile tile;
        while (walk.next(tile) && tile.split != kWholeTile) {
            int const first = rest.block_of(tile.split * rest.steps);
            int const last = rest.block_of((tile.split + 1) * rest.steps - 1);
            if (!is_last(tile.split, last - first)) continue;
            float out[S::kSize / 8][4];
            RunningSoftmax softmax;
            add_up(a, tile.split, first, last, out, softmax);
            store_whole(a, tile, tile.first_row + row, out, softmax);
        }
    }

  private:
    __device__ static void store_whole(Attention const& a, HopperTile const& tile, int row,
                                       float const (&out)[S::kSize / 8][4],
                                       RunningSoftmax const& softmax) {
        store_results<T, S::kSize>(a, head_of<T>(a.y, tile.batch, tile.head), row, out, softmax);
    }
    // A block has no more than one part of a tile, and blocks that follow each other share one at
    // most: their numbers and those of tiles, added, tell parts apart.
    __device__ float4* part(int block, int tile) const {
        int const index = (block + tile) * S::kGroups + static_cast<int>(threadIdx.x) / 128;
        return rest.parts + index * ((kVectors + 1) * 128) + threadIdx.x % 128;
    }
    // In the order of the blocks, so that results are the same each time.
    __device__ void add_up(Attention const& a, int tile, int first, int last,
                           float (&out)[S::kSize / 8][4], RunningSoftmax& softmax) const {
        float const log2_scale = a.scale * kLog2E;
        clear(out);
        for (int block = first; block <= last; ++block) {
            float4 const* const own = part(block, tile);
            float4 const rows = __ldcg(own + 128 * kVectors);
            float4 results[kVectors];  // on their way together
#pragma unroll
            for (int i = 0; i < kVectors; ++i) results[i] = __ldcg(own + 128 * i);
            float const given[2][2] = {{rows.x, rows.z}, {rows.y, rows.w}};
            float before[2], now[2];
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                float const top = fmaxf(softmax.max[r], given[r][0]);
                before[r] = share(softmax.max[r], top, log2_scale);
                now[r] = share(given[r][0], top, log2_scale);
                softmax.max[r] = top;
                softmax.sum[r] = fmaf(given[r][1], now[r], softmax.sum[r] * before[r]);
            }
#pragma unroll
            for (int i = 0; i < kVectors; ++i) {
                out[i][0] = fmaf(results[i].x, now[0], out[i][0] * before[0]);
                out[i][1] = fmaf(results[i].y, now[0], out[i][1] * before[0]);
                out[i][2] = fmaf(results[i].z, now[1], out[i][2] * before[1]);
                out[i][3] = fmaf(results[i].w, now[1], out[i][3] * before[1]);
            }
        }
    }
    // Whether this warp group is the last of `others` + 1.
    __device__ bool is_last(int tile, int others) const {
        int const group = threadIdx.x / 128, barrier = 1 + group;
        bool last = false;
        device::meet(barrier, 128);
        if (threadIdx.x % 128 == 0) {
            __threadfence();  // also for what the others wrote ahead of the barrier
            unsigned* const arrived = &rest_arrivals<S>[rest.arrivals][tile * S::kGroups + group];
            last = atomicInc(arrived, others) == static_cast<unsigned>(others);
            __threadfence();
        }
        return device::meet_and_ask(barrier, 128, last);
    }
};

template <class T, class S>
__global__ void __launch_bounds__(S::kThreads, 1)
    rest_kernel(Attention const a, TileOrder const order, SharedRest const rest,
                __grid_constant__ AttentionMaps const maps) {
    run_block<T, S, Scores::kScaled, RestWalk<S>>(a, maps, RestResults<T, S>{rest}, order, rest);
}

// ---- launchers

// Not supported where there is no rest, no counters for it, or no room.
template <class T, class S>
cudaError_t launch_rest(Attention const& a, void* workspace, cudaStream_t stream) {
    device::Machine machine;
    if (cudaError_t const status = device::current_machine(machine)) return status;
    int64_t const tiles = a.batch * a.heads * ((a.queries + S::kRows - 1) / S::kRows);
    int64_t const steps = (a.keys + S::kKeys - 1) / S::kKeys, most = machine.multiprocessors;
    int64_t const blocks = std::min(tiles * steps / kLeastShare, most);
    int64_t const alone = tiles < most ? tiles : tiles % most;
    bool const pays = alone > 0 && alone < blocks && alone * steps >= blocks;  // no empty share
    bool const fits = tiles <= INT32_MAX / 4 && alone * steps <= INT32_MAX / (most + 1);
    if (!workspace || !sees_alike(a) || !pays || !fits || most > kMostRest)
        return cudaErrorNotSupported;
    SharedRest const rest{static_cast<int>(alone), static_cast<int>(steps),
                          static_cast<float4*>(workspace), arrivals_of(workspace)};
    if (rest.arrivals < 0) return cudaErrorNotSupported;
    AttentionMaps maps;
    if (!map_attention(maps, a, std::is_same_v<T, __half>, S::kRows, S::kKeys))
        return cudaErrorNotSupported;
    device::Grid const grid{blocks, dim3(S::kThreads), 1, S::kSharedBytes};
    return device::launch(rest_kernel<T, S>, machine, grid, stream, a, order_by_keys<S>(a), rest,
                          maps);
}

}  // namespace opfuse
