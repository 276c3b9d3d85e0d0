// Tiles of a product on Hopper: their shape, their order, and what a block keeps of them.
#pragma once
#include <cstdint>

#include "../device/wgmma.cuh"

namespace opfuse {

// How a block's two warp groups of consumers share the work: half of each tile's rows each, or
// every other tile each.  By turns, one finishes its tile while the other multiplies.
enum class Sharing { kRows, kTurns };

// A tile is kRows by kCols.  kCluster blocks share columns, and load a part of the weight each; or
// kParts blocks share a tile, and have a part of the depth each.
template <Sharing kSharing_, int kGroups_, int kCols_, int kStages_, int kCluster_ = 1,
          int kParts_ = 1>
struct GemmShape {
    static constexpr bool kTurns = kSharing_ == Sharing::kTurns;
    static constexpr int kGroups = kGroups_, kCols = kCols_, kStages = kStages_;
    static constexpr int kCluster = kCluster_, kParts = kParts_;
    static_assert(kCluster == 1 || kParts == 1);
    static constexpr int kThreads = 128 * (kGroups + 1);
    static constexpr int kHeights = kTurns ? 2 : 1;  // of 64 rows, of one group
    static constexpr int kRows = 64 * (kTurns ? kHeights : kGroups);
    static constexpr int kDepth = 64;  // of a stage: a row of a box
    static constexpr int kXBytes = kRows * device::kBoxBytes;
    static constexpr int kWeightBytes = kCols * device::kBoxBytes;
    static constexpr int kStageBytes = kXBytes + kWeightBytes;
    static constexpr int kReaders = kTurns ? 1 : kGroups;       // groups that read a stage
    static constexpr int kChunkBytes = 64 * device::kBoxBytes;  // of 64 rows by 64 columns of y
    static constexpr int kChunks = kStages * kStageBytes;       // where they begin in shared memory
    static constexpr int kExchange =
        kChunks + 2 * kGroups * kChunkBytes;  // where sums of others do
    static constexpr int kExchangeBytes = kParts > 1 ? kRows * kCols * 4 / kParts : 0;
    static constexpr int kBarriers = kExchange + kExchangeBytes;
    static constexpr int kSharedBytes = kBarriers + 1024 + 256;
};

template <class S>
struct GemmBarriers {
    uint64_t full[S::kStages], empty[S::kStages];
    uint64_t residual[S::kGroups][2];  // two chunks of each group
    uint64_t exchange;
};

// Tiles in bands of some rows, so that what runs at one time reads about as many rows as columns.
struct GemmOrder {
    int rows, cols;  // of tiles of a cluster
    int band;        // rows of tiles
};

struct GemmTile {
    int row, col;  // of elements
};

template <class S, bool kGated>
__device__ GemmTile gemm_tile(GemmOrder const& order, int index, int rank) {
    int const of_band = order.band * order.cols;
    int const band = index / of_band, inside = index % of_band;
    int const rows = min(order.band, order.rows - band * order.band);
    return {((band * order.band + inside % rows) * S::kCluster + (S::kCluster > 1 ? rank : 0)) *
                S::kRows,
            inside / rows * (kGated ? S::kCols / 2 : S::kCols)};
}

// Calls `work` with this block's tiles, from `first` on each `stride`th.
template <class S, bool kGated, class Work>
__device__ void for_each_tile(GemmOrder const& order, int rank, int first, int stride, Work work) {
    int constexpr kBlocks = S::kCluster * S::kParts;
    int const clusters = gridDim.x / kBlocks, own = blockIdx.x / kBlocks;
    for (int i = own + first * clusters; i < order.rows * order.cols; i += stride * clusters)
        work(gemm_tile<S, kGated>(order, i, rank));
}

// The stages of the depth that this block multiplies.
struct GemmSteps {
    int begin, end;

    __device__ int count() const { return end - begin; }
};

template <class S>
__device__ GemmSteps gemm_steps(int depth, int rank) {
    int const all = (depth + S::kDepth - 1) / S::kDepth,
              of_part = (all + S::kParts - 1) / S::kParts;
    if (S::kParts == 1) return {0, all};
    return {min(all, rank * of_part), min(all, (rank + 1) * of_part)};
}

}  // namespace opfuse
