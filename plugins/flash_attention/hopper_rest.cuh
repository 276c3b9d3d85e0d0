// The same where the last round of tiles would leave multiprocessors idle: the tiles that fill no
// round are shared out among all blocks by their keys (after "Stream-K", Osama et al. 2023).  Each
// block begins with its share, so that what it leaves for others has long been written when the
// last of a tile's blocks adds it up, and other warp groups multiply meanwhile.
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
        int const heads = min(order_.set_heads, order_.heads - set * order_.set_heads);
        fill_tile<S, false>(tile, a_, order_, set * order_.set_heads + inside % heads,
                            inside / heads);
    }

    Attention const& a_;
    TileOrder const& order_;
    SharedRest const& rest_;
    int step_, end_, whole_;
};

// Of each tile and warp group, the parts whose results are there; the last one begins anew.
template <class S>
__device__ unsigned rest_arrivals[kArrivalSets][kMostRest * S::kGroups];

// Results of whole tiles, and of parts, which the last warp group to have its own adds up, always
// in the same order.  A part is [kSize / 8 + 1, 128 lanes] of four: results as a lane holds them,
// then the maxima and sums of its rows.
template <class T, class S>
struct RestResults {
    static constexpr int kParts = 1;  // of weights
    static constexpr bool kHasParts = true;
    __device__ static int query_of(int row) { return row; }

    static constexpr int kVectors = S::kSize / 8 + 1;
    static_assert(S::kRows <= kRestRows && S::kSize <= kRestSize);

    SharedRest const& rest;

    __device__ void store(Attention const& a, HopperTile const& tile, int row,
                          float const (&out)[S::kSize / 8][4],
                          RunningSoftmax const& softmax) const {
        store_results<T, S::kSize>(a, head_of<T>(a.y, tile.batch, tile.head), row, out, softmax);
    }

    // Adds up a tile, if it is in parts, and all others of this warp group's rows are there; false
    // where they are not.
    __device__ bool add_up(Attention const& a, HopperTile const& whole,
                           float (&out)[S::kSize / 8][4], RunningSoftmax& softmax) const {
        int const tile = whole.split;
        if (tile == kWholeTile) return true;
        int const group = threadIdx.x / 128;
        int const first = rest.block_of(tile * rest.steps);
        int const last = rest.block_of((tile + 1) * rest.steps - 1);
        float4* const own = part(blockIdx.x, tile, group);
#pragma unroll
        for (int i = 0; i < kVectors - 1; ++i)
            own[128 * i] = {out[i][0], out[i][1], out[i][2], out[i][3]};
        own[128 * (kVectors - 1)] = {softmax.max[0], softmax.max[1], softmax.sum[0],
                                     softmax.sum[1]};
        if (!is_last(tile * S::kGroups + group, last - first)) return false;
        softmax = RunningSoftmax{};
        for (int block = first; block <= last; ++block) {
            float4 const other = __ldcg(part(block, tile, group) + 128 * (kVectors - 1));
            softmax.max[0] = fmaxf(softmax.max[0], other.x);
            softmax.max[1] = fmaxf(softmax.max[1], other.y);
        }
        clear(out);
        for (int block = first; block <= last; ++block)
            add_part(part(block, tile, group), a, out, softmax);
        return true;
    }

  private:
    // A block has no more than one part of a tile, and blocks that follow each other share one at
    // most: their numbers and those of tiles, added, tell parts apart.
    __device__ float4* part(int block, int tile, int group) const {
        return rest.parts + ((block + tile) * S::kGroups + group) * (kVectors * 128) +
               threadIdx.x % 128;
    }
    __device__ static void add_part(float4 const* part, Attention const& a,
                                    float (&out)[S::kSize / 8][4], RunningSoftmax& softmax) {
        float const log2_scale = a.scale * kLog2E;
        float4 const other = __ldcg(part + 128 * (kVectors - 1));
        float const upper = share(other.x, softmax.max[0], log2_scale);
        float const lower = share(other.y, softmax.max[1], log2_scale);
        softmax.sum[0] = fmaf(other.z, upper, softmax.sum[0]);
        softmax.sum[1] = fmaf(other.w, lower, softmax.sum[1]);
#pragma unroll
        for (int i = 0; i < kVectors - 1; ++i) {
            float4 const own = __ldcg(part + 128 * i);
            out[i][0] = fmaf(own.x, upper, out[i][0]);
            out[i][1] = fmaf(own.y, upper, out[i][1]);
            out[i][2] = fmaf(own.z, lower, out[i][2]);
            out[i][3] = fmaf(own.w, lower, out[i][3]);
        }
    }
    // Whether this warp group's part is the last of `others` + 1.
    __device__ bool is_last(int counter, int others) const {
        int const barrier = 1 + threadIdx.x / 128;
        bool last = false;
        device::meet(barrier, 128);
        if (threadIdx.x % 128 == 0) {
            __threadfence();  // also for what the others wrote ahead of the barrier
            unsigned* const arrived = &rest_arrivals<S>[rest.arrivals][counter];
            last = atomicInc(arrived, others) == static_cast<unsigned>(others);
            __threadfence();
        }
        // Through a shuffle: else ptxas takes it that threads part here, and has the descriptors of
        // all products in registers.
        return __shfl_sync(0xffffffffu, device::meet_and_ask(barrier, 128, last), 0);
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
    return device::launch(rest_kernel<T, S>, early_if(machine, false), grid, stream, a,
                          order_tiles<S>(a, static_cast<int>(blocks)), rest, maps);
}

}  // namespace opfuse
