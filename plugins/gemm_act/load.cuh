// The producer of a product on Hopper: one thread that asks the copy engine for stages.
#pragma once
#include "cluster.cuh"
#include "shape.cuh"
#include "tensor_map.h"

namespace opfuse {

// This block's part of the weight's columns, for all blocks of the cluster.
template <class S, bool kByRows, bool kGated>
__device__ void load_weight(unsigned char* to, GemmMaps const& maps, uint64_t* barrier,
                            GemmTile const& tile, int k, int rank) {
    constexpr int kBox = kByRows ? 64 : S::kCols / 2;  // columns of a copy
    constexpr int kPart = S::kCols / kBox / S::kCluster;
    constexpr int kHalf = S::kCols / 2;
    constexpr uint16_t kAll = (1 << S::kCluster) - 1;
#pragma unroll
    for (int i = 0; i < kPart; ++i) {
        int const box = (S::kCluster > 1 ? rank * kPart : 0) + i;
        bool const second = box * kBox >= kHalf;
        CUtensorMap const& map = kGated && second ? maps.up : maps.weight;
        int const col = tile.col + box * kBox - (kGated && second ? kHalf : 0);
        unsigned char* const at = to + box * kBox * device::kBoxBytes;
        int const x = kByRows ? col : k, y = kByRows ? k : col;
        if constexpr (S::kCluster > 1)
            device::copy_tile_to(kAll, at, map, barrier, x, y);
        else
            device::copy_tile(at, map, barrier, x, y);
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
