// The producer of a product on Hopper: one thread that asks the copy engine for stages.
#pragma once
#include "cluster.cuh"
#include "residual.cuh"
#include "shape.cuh"
#include "tensor_map.h"

namespace opfuse {

// This block's part of the rows of x, for all blocks of the cluster.
template <class S>
__device__ void load_x(unsigned char* to, GemmMaps const& maps, uint64_t* barrier,
                       GemmTile const& tile, int k, int rank) {
    constexpr int kOwn = S::kLoadedRows;
    if constexpr (S::kCluster > 1)
        device::copy_tile_to((1 << S::kCluster) - 1, to + rank * kOwn * device::kBoxBytes, maps.x,
                             barrier, k, tile.row + rank * kOwn);
    else
        device::copy_tile(to, maps.x, barrier, k, tile.row);
}

// Boxes of `width` columns, one after another.
template <class S, bool kByRows, bool kGated>
__device__ void load_weight(unsigned char* to, GemmMaps const& maps, uint64_t* barrier,
                            GemmTile const& tile, int k, int width = 64) {
#pragma unroll
    for (int box = 0; box < S::kBoxes; ++box) {
        bool const up = kGated && box >= S::kBoxes / 2;  // up follows gate
        int const col = tile.col + (box - (up ? S::kBoxes / 2 : 0)) * width;
        device::copy_tile(to + box * S::kOfBox, up ? maps.up : maps.weight, barrier,
                          kByRows ? col : k, kByRows ? k : col);
    }
}

// A stage with the residual of one group: chunks of rows.
template <class S>
__device__ void load_residual(unsigned char* to, GemmMaps const& maps, uint64_t* full,
                              GemmTile const& tile, int group) {
    constexpr int kChunks = S::kRows / S::kChunkRows;
    device::arrive_expecting(full, kChunks * S::kChunkBytes);
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk)
        device::copy_tile(to + chunk * S::kChunkBytes, maps.residual, full, tile.col + group * 64,
                          tile.row + chunk * S::kChunkRows);
}

template <class S, bool kByRows, bool kGated>
__device__ void load_tiles(GemmMaps const& maps, GemmOrder const& order, GemmBarriers<S>& barriers,
                           unsigned char* stages, int steps, int rank, bool has_residual) {
    // The first residual is asked for behind so many stages: ahead of them, it is what they wait
    // for.
    constexpr int kBegun = 4;
    int stage = 0, number = 0;
    uint32_t parity = 1;
    GemmTile last{};
    for_each_tile<S, kGated>(order, rank, 0, 1, [&](GemmTile const& tile) {
        for (int step = 0; step < steps; ++step) {
            device::wait(&barriers.empty[stage], parity);
            uint64_t* const full = &barriers.full[stage];
            unsigned char* const x = stages + stage * S::kStageBytes;
            int const missing = S::kStaysInside ? S::kRows - order.x_rows : 0;
            device::arrive_expecting(full, S::kStageBytes - missing * device::kBoxBytes);
            load_x<S>(x, maps, full, tile, step * S::kDepth, rank);
            load_weight<S, kByRows, kGated>(x + S::kXBytes, maps, full, tile, step * S::kDepth);
            if (++stage == S::kStages) stage = 0, parity ^= 1;
            if constexpr (S::kResidualSlots)
                if (number < S::kGroups && step + 1 == min(kBegun, steps))
                    device::arrive(&barriers.slots.begun[number]);
        }
        if constexpr (S::kResidualSlots) last = tile, ++number;
        if constexpr (S::kResidualStages && !kGated) {
            for (int group = 0; has_residual && group < S::kGroups; ++group) {
                device::wait(&barriers.empty[stage], parity);
                load_residual<S>(stages + stage * S::kStageBytes, maps, &barriers.full[stage], tile,
                                 group);
                if (++stage == S::kStages) stage = 0, parity ^= 1;
            }
        }
    });
    if constexpr (S::kResidualSlots && S::kSlots < S::kChunksOfTile) {
        device::wait(&barriers.empty[stage], parity);
        load_last_chunks<S>(maps, last, stages + stage * S::kStageBytes, &barriers.full[stage]);
    }
}

}  // namespace opfuse
