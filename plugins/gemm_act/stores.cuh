// y of tiles that groups take by turns on Hopper: a warp of producers for each group stores what
// the group has put into its slots.  Where consumers do it they wait for one another at each chunk,
// and the next chunk's special functions for that.
#pragma once
#include "cluster.cuh"
#include "shape.cuh"
#include "tensor_map.h"

namespace opfuse {

template <class S>
__device__ void init_chunk_barriers(ChunkBarriers<S>& barriers) {
    for (int group = 0; group < S::kGroups; ++group)
        for (int chunk = 0; chunk < S::kChunksOfTile; ++chunk) {
            device::init_barrier(&barriers.ready[group][chunk], 4);
            device::init_barrier(&barriers.read[group][chunk], 1);
        }
}

// Where a chunk of a tile is in y and in the residual.
template <class S>
__device__ GemmTile place_of_chunk(GemmTile const& tile, int chunk) {
    constexpr int kAcross = S::kRows / S::kChunkRows;
    return {tile.row + chunk % kAcross * S::kChunkRows, tile.col + chunk / kAcross * 64};
}

// Warps of producers behind the first, one for each group.
template <class S>
__device__ void store_chunks(GemmMaps const& maps, GemmOrder const& order,
                             ChunkBarriers<S>& barriers, unsigned char* stages, int rank) {
    int const group = static_cast<int>(threadIdx.x / 32) - 1;
    if (group < 0 || group >= S::kGroups || threadIdx.x % 32 > 0) return;
    unsigned char* const slots = stages + S::kChunks + group * S::kSlots * S::kChunkBytes;
    uint32_t parity = 0;
    for_each_tile<S, false>(order, rank, group, S::kGroups, [&](GemmTile const& tile) {
        for (int chunk = 0; chunk < S::kChunksOfTile; ++chunk) {
            GemmTile const at = place_of_chunk<S>(tile, chunk);
            device::wait(&barriers.ready[group][chunk], parity);
            device::store_tile(maps.y, slots + chunk % S::kSlots * S::kChunkBytes, at.col, at.row);
            device::commit_stores();
            if (chunk == 0) continue;
            device::wait_for_stores<1>();
            device::arrive(&barriers.read[group][chunk - 1]);
        }
        device::wait_for_stores<0>();
        device::arrive(&barriers.read[group][S::kChunksOfTile - 1]);
        parity ^= 1;
    });
}

}  // namespace opfuse
