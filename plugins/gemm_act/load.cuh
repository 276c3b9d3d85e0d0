// The producer of a product on Hopper: one thread that asks the copy engine for stages.
#pragma once
#include "cluster.cuh"
#include "shape.cuh"
#include "tensor_map.h"

namespace opfuse {

// Calls `work` with the boxes of the weight that this block loads of a stage: the map, the box's
// place in the stage, and where it is in the tensor.
template <class S, bool kByRows, bool kGated, class Work>
__device__ void for_each_box(GemmMaps const& maps, GemmTile const& tile, int k, int rank,
                             Work work) {
    constexpr int kOwn = S::kBoxes / S::kCluster;
    static_assert(S::kBoxes % S::kCluster == 0);
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
        int const box = (S::kCluster > 1 ? rank * kOwn : 0) + i;
        bool const up = kGated && box >= S::kBoxes / 2;  // up follows gate
        int const col = tile.col + (box - (up ? S::kBoxes / 2 : 0)) * 64;
        work(up ? maps.up : maps.weight, box, kByRows ? col : k, kByRows ? k : col);
    }
}

// This block's part of the weight's columns, for all blocks of the cluster.
template <class S, bool kByRows, bool kGated>
__device__ void load_weight(unsigned char* to, GemmMaps const& maps, uint64_t* barrier,
                            GemmTile const& tile, int k, int rank) {
    for_each_box<S, kByRows, kGated>(
        maps, tile, k, rank, [&](CUtensorMap const& map, int box, int x, int y) {
            unsigned char* const at = to + box * S::kOfBox;
            if constexpr (S::kCluster > 1)
                device::copy_tile_to((1 << S::kCluster) - 1, at, map, barrier, x, y);
            else
                device::copy_tile(at, map, barrier, x, y);
        });
}

// Asks for the first stages of the weight to be in L2, which is allowed ahead of wait_for_previous,
// by the consumers, who wait for it: the copy engine would be late for the stages themselves.
template <class S, bool kByRows>
__device__ void prefetch_weight(Gemm const& g, GemmTile const& tile, GemmSteps steps) {
    constexpr int kMost = 12;
    constexpr int kLines = S::kBoxes * 64;  // of 128 bytes, of a stage
    int const lines = min(steps.count(), kMost) * kLines;
    for (int i = threadIdx.x - 128; i < lines; i += 128 * S::kGroups) {
        int const box = i % S::kBoxes, inside = i / S::kBoxes % 64;
        int const k = (steps.begin + i / kLines) * S::kDepth + (kByRows ? inside : 0);
        int const col = tile.col + box * 64 + (kByRows ? 0 : inside);
        if (k >= g.depth || col >= g.cols) continue;
        int64_t const at = kByRows ? k * int64_t{g.cols} + col : col * int64_t{g.depth} + k;
        device::prefetch(static_cast<uint16_t const*>(g.weight) + at);
    }
}

template <class S, bool kByRows, bool kGated>
__device__ void load_tiles(GemmMaps const& maps, GemmOrder const& order, GemmBarriers<S>& barriers,
                           unsigned char* stages, GemmSteps steps, int rank) {
    int stage = 0;
    uint32_t parity = 1;
    for_each_tile<S, kGated>(order, rank, 0, 1, [&](GemmTile const& tile) {
        for (int step = steps.begin; step < steps.end; ++step) {
            device::wait(&barriers.empty[stage], parity);
            uint64_t* const full = &barriers.full[stage];
            unsigned char* const x = stages + stage * S::kStageBytes;
            device::arrive_expecting(full, S::kStageBytes);
            device::copy_tile(x, maps.x, full, step * S::kDepth, tile.row);
            load_weight<S, kByRows, kGated>(x + S::kXBytes, maps, full, tile, step * S::kDepth,
                                            rank);
            if (++stage == S::kStages) stage = 0, parity ^= 1;
        }
    });
}

}  // namespace opfuse
