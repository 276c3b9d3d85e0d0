// Products of few rows on Hopper: the shape of their tiles, and what a block has of them.
#pragma once
#include <cstdint>

#include "../device/wgmma.cuh"
#include "shape.cuh"

namespace opfuse {

constexpr int over(int a, int b) { return (a + b - 1) / b; }

// Tiles of up to kRows rows by up to 64 columns in each of kBoxes; gated, the first half of them is
// of the gate and the second of what it lets through.
template <int kRows_, int kBoxes_, int kStages_, int kXStages_, int kResident_, int kShare_ = 1>
struct StreamShape {
    static constexpr int kRows = kRows_, kBoxes = kBoxes_;
    // Of the weight, and of x, which comes from L2 and so need not be asked for as early.
    static constexpr int kStages = kStages_, kXStages = kXStages_, kLead = kStages - kXStages;
    static_assert(kLead >= 0);
    // Blocks that a multiprocessor has room for, and those of one launch: the next one's may come
    // before this one's have ended.
    static constexpr int kResident = kResident_, kShare = kShare_;
    static constexpr int kConsumers = 128, kThreads = kConsumers + 32;
    static constexpr int kDepth = 64;  // of a stage
    static constexpr int kCluster = 1, kLoadedRows = kRows;
    static constexpr int kXBytes = kRows * device::kBoxBytes, kOfBox = 64 * device::kBoxBytes;
    static constexpr int kWeightBytes = kBoxes * kOfBox;       // of a stage
    static constexpr int kX = kStages * kWeightBytes;          // where x begins in shared memory,
    static constexpr int kBarriers = kX + kXStages * kXBytes;  // and where barriers do
    static constexpr int kBlocks = kRows / 8;
    static constexpr int kBlockBytes = kBoxes * kConsumers * 16;      // sums of 8 rows
    static constexpr int kGiven = kBarriers + (2 * kStages + 2) * 8;  // and others' sums

    static constexpr int shared_bytes(int cluster) {
        return kGiven + (cluster - 1) * over(kBlocks, cluster) * kBlockBytes;
    }

    template <bool kGated>
    static constexpr int kOut = kGated ? kBoxes / 2 : kBoxes;
    template <bool kGated>
    static constexpr int kCols = 64 * kOut<kGated>;
};

struct StreamPlan {
    int rows, cols;  // of a tile, so that all are about as large
    int box;         // columns of a box, a multiple of 8; the last one may end behind the tile
    int bytes;       // of a stage: x and all boxes
    int across;      // tiles that have the same columns, by neighbouring blocks
    int cluster;     // blocks that share a tile; 1 where a block has several
    int tiles;
    int steps;    // stages of a tile
    int early;    // of a block that are asked into L2 ahead of the wait for the previous kernel
    bool spread;  // a block of a cluster takes every so manyth stage, not neighbouring ones
};

// What a block has: of some rows tiles so many columns apart, and of each some stages; of the
// tile's sums blocks of 8 rows rank, rank + cluster, ...
struct StreamPart {
    StreamPlan const& plan;
    int const rank, tiles;
    int const row, col, col_step;       // of the first tile, and from one to the next
    int const steps;                    // of a tile
    int const first_depth, depth_step;  // of its stages

    __device__ StreamPart(StreamPlan const& plan, int rank)
        : plan(plan),
          rank(rank),
          tiles((plan.tiles - blockIdx.x / plan.cluster - 1) / (gridDim.x / plan.cluster) + 1),
          row(blockIdx.x / plan.cluster % plan.across * plan.rows),
          col(blockIdx.x / plan.cluster / plan.across * plan.cols),
          col_step(gridDim.x / plan.cluster / plan.across * plan.cols),
          steps(plan.spread ? (plan.steps - rank + plan.cluster - 1) / plan.cluster
                            : begin(rank + 1) - begin(rank)),
          first_depth(64 * (plan.spread ? rank : begin(rank))),
          depth_step(64 * (plan.spread ? plan.cluster : 1)) {}

    __device__ int begin(int of_rank) const { return plan.steps * of_rank / plan.cluster; }
    __device__ int depth(int step) const { return first_depth + step * depth_step; }
    // Of `all` blocks of 8 rows, how many `to` finishes.
    __device__ int own_blocks(int all, int to) const {
        return (all - to + plan.cluster - 1) / plan.cluster;
    }
    __device__ uint32_t own() const {
        uint32_t found = 0;
        for (int block = rank; block < 32; block += plan.cluster) found |= 1u << block;
        return found;
    }
};

template <class S>
struct StreamBarriers {
    uint64_t full[S::kStages], empty[S::kStages], given, unused;
};

}  // namespace opfuse
