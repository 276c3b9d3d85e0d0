// Tiles of a product on Hopper: their shape, their order, and what a block keeps of them.
#pragma once
#include <cstdint>
#include <type_traits>

#include "../device/wgmma.cuh"

namespace opfuse {

// How a block's warp groups of consumers share the work.  kColumns: each has a part of each tile's
// columns.  kTurns: each has every other tile, and finishes it while the other multiplies.
enum class Sharing { kColumns, kTurns };

// A group multiplies 64 columns of the weight at a time with kRows rows of x, kHeights times: that
// of neighbouring columns, or gated that of the gate and of what it lets through.  kCluster blocks
// share rows, and load a part of x each.
template <Sharing kSharing, int kGroups_, int kHeights_, int kRows_, int kStages_,
          int kCluster_ = 1>
struct GemmShape {
    static constexpr bool kTurns = kSharing == Sharing::kTurns;
    static constexpr int kGroups = kGroups_, kHeights = kHeights_, kRows = kRows_;
    static constexpr int kStages = kStages_, kCluster = kCluster_;
    static constexpr int kThreads = 128 * (kGroups + 1);
    static constexpr int kDepth = 64;  // of a stage: a row of a box
    static constexpr int kBoxes =
        kHeights * (kTurns ? 1 : kGroups);  // of 64 of the weight's columns
    static constexpr int kWeightCols = 64 * kBoxes;
    static constexpr int kXBytes = kRows * device::kBoxBytes;
    static constexpr int kLoadedRows = kRows / kCluster;  // of x, by one block
    static_assert(kLoadedRows * kCluster == kRows && kLoadedRows % 8 == 0);
    static constexpr int kOfBox = 64 * device::kBoxBytes;
    static constexpr int kStageBytes = kXBytes + kBoxes * kOfBox;
    static constexpr int kReaders = kTurns ? 1 : kGroups;  // groups that read a stage
    // Groups that share a tile find its residual in a stage each, behind those of the depth.
    static constexpr bool kResidualStages = !kTurns && kHeights == 1;
    // y leaves in chunks of 64 columns, as many at once as a group has slots for.
    static constexpr int kChunkRows = kRows % 64 == 0 ? 64 : kRows % 48 == 0 ? 48 : kRows;
    static constexpr int kChunkBytes = kChunkRows * device::kBoxBytes;
    static constexpr int kSlots = kTurns ? 4 : kRows > 192 ? 2 : kRows / kChunkRows;
    static constexpr bool kResidualSlots = false, kStoringWarps = false;
    // No box of x ends outside of it, for which the copy engine takes 3 ns a row: 192x8192x8192
    // took 77 us by tiles of 128 rows, cuBLAS 51.  The last tile computes some rows of the one
    // before it again, for the same bits; where x has fewer rows than a tile, so has a box.
    static constexpr bool kStaysInside = kRows <= 128 && kCluster == 1;
    static constexpr int kChunksOfTile = kHeights * (kRows / kChunkRows);  // without a gate
    static constexpr int kChunks = kStages * kStageBytes;  // where they begin in shared memory
    static constexpr int kChunksBytes = kGroups * kSlots * kChunkBytes;
    static constexpr int kBarriers = kChunks + kChunksBytes;
    static constexpr int kSharedBytes = kBarriers + 1024 + 256;
    static_assert(kSharedBytes + 1024 <= 228 * 1024);

    // Columns of y.
    template <bool kGated>
    static constexpr int kCols = kGated ? kWeightCols / 2 : kWeightCols;
};

// The same by turns, with a residual, which comes to the slots.
template <class S>
struct WithResidual : S {
    static constexpr bool kResidualSlots = true;
    static_assert(S::kTurns && S::kSlots <= S::kChunksOfTile);
    static constexpr int kSharedBytes = S::kSharedBytes + 128;
};

// The same without a residual: warps of producers store y.
template <class S>
struct WithStores : S {
    static constexpr bool kStoringWarps = true;
    static_assert(S::kTurns && S::kSlots <= S::kChunksOfTile);
    static constexpr int kSharedBytes = S::kSharedBytes + 128;
};

// Of each group: its first tile's stages come, a slot's residual has come, and a chunk of y is
// ready.
template <class S>
struct SlotBarriers {
    uint64_t begun[S::kGroups];
    uint64_t come[S::kGroups][S::kSlots], ready[S::kGroups][S::kChunksOfTile];
};

// Of each group: a chunk of y is ready, and is out of its slot.
template <class S>
struct ChunkBarriers {
    uint64_t ready[S::kGroups][S::kChunksOfTile], read[S::kGroups][S::kChunksOfTile];
};

struct NoBarriers {};

template <class S>
struct GemmBarriers {
    uint64_t full[S::kStages], empty[S::kStages];
    std::conditional_t<S::kResidualSlots, SlotBarriers<S>,
                       std::conditional_t<S::kStoringWarps, ChunkBarriers<S>, NoBarriers>>
        slots;
};

// Tiles in bands of some rows, so that what runs at one time reads about as many rows as columns.
struct GemmOrder {
    int rows, cols;  // of tiles of a cluster
    int band;        // rows of tiles
    int last_row;    // of x, that a tile that stays inside may begin with
    int x_rows;      // of a box of x
};

struct GemmTile {
    int row, col;  // of elements
};

template <class S, bool kGated>
__device__ GemmTile gemm_tile(GemmOrder const& order, int index, int rank) {
    int const of_band = order.band * order.cols;
    int const band = index / of_band, inside = index % of_band;
    int const rows = min(order.band, order.rows - band * order.band);
    int const row = (band * order.band + inside % rows) * S::kRows;
    return {
        S::kStaysInside ? min(row, order.last_row) : row,
        (inside / rows * S::kCluster + (S::kCluster > 1 ? rank : 0)) * S::template kCols<kGated>};
}

// Calls `work` with this block's tiles, from `first` on each `stride`th.
template <class S, bool kGated, class Work>
__device__ void for_each_tile(GemmOrder const& order, int rank, int first, int stride, Work work) {
    int const clusters = gridDim.x / S::kCluster, own = blockIdx.x / S::kCluster;
    for (int i = own + first * clusters; i < order.rows * order.cols; i += stride * clusters)
        work(gemm_tile<S, kGated>(order, i, rank));
}

template <class S>
__device__ int count_tiles(GemmOrder const& order) {
    int const clusters = gridDim.x / S::kCluster, own = blockIdx.x / S::kCluster;
    return (order.rows * order.cols - own + clusters - 1) / clusters;
}

// The stages of the depth.
template <class S>
__device__ int gemm_steps(int depth) {
    return (depth + S::kDepth - 1) / S::kDepth;
}

}  // namespace opfuse
