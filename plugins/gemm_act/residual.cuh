// The residual of tiles that groups take by turns on Hopper.  It comes to a group's slots chunk by
// chunk, and y takes its place.  Warps of producers copy both: a consumer that waits for what it
// stored itself finishes a tile of 192 rows in 4,900 clocks, not in 2,000.
#pragma once
#include "cluster.cuh"
#include "launch.h"
#include "shape.cuh"
#include "tensor_map.h"

namespace opfuse {

template <class S>
__device__ void init_slot_barriers(SlotBarriers<S>& barriers) {
    for (int group = 0; group < S::kGroups; ++group) {
        device::init_barrier(&barriers.begun[group], 1);
        for (auto& barrier : barriers.come[group]) device::init_barrier(&barrier, 32);
        for (auto& barrier : barriers.free[group]) device::init_barrier(&barrier, 1);
        for (auto& barrier : barriers.ready[group]) device::init_barrier(&barrier, 4);
    }
}

// Where a chunk of a tile is in y and in the residual.
template <class S>
__device__ GemmTile place_of_chunk(GemmTile const& tile, int chunk) {
    constexpr int kAcross = S::kRows / S::kChunkRows;
    return {tile.row + chunk % kAcross * S::kChunkRows, tile.col + chunk / kAcross * 64};
}

// The block's last tile finds the chunks that its group's slots have no room for in a stage behind
// all others.
template <class S>
__device__ void load_last_chunks(GemmMaps const& maps, GemmTile const& tile, unsigned char* stage,
                                 uint64_t* full) {
    device::arrive_expecting(full, (S::kChunksOfTile - S::kSlots) * S::kChunkBytes);
#pragma unroll
    for (int chunk = S::kSlots; chunk < S::kChunksOfTile; ++chunk) {
        GemmTile const at = place_of_chunk<S>(tile, chunk);
        device::copy_tile(stage + (chunk - S::kSlots) * S::kChunkBytes, maps.residual, full, at.col,
                          at.row);
    }
}

// How a warp copies a chunk: 16 bytes a thread, 4 rows at a time.  They wait for memory elsewhere
// than the stages, which the copy engine gives in the order in which it is asked: where it brings
// the residual, 4096x768x3072 takes 2 us more.
template <class S>
struct ChunkWords {
    static constexpr int kSteps = S::kChunkRows / 4;

    int64_t first;  // of the tensor's elements, this thread's
    int64_t const stride;
    int steps;  // that are inside of the tensor

    __device__ ChunkWords(Gemm const& g, GemmTile const& at)
        : first((at.row + row()) * int64_t{g.cols} + at.col + unit() * 8),
          stride(4 * int64_t{g.cols}),
          steps(at.col + unit() * 8 < g.cols
                    ? static_cast<int>(min(int64_t{kSteps}, (g.rows - at.row - row() + 3) / 4))
                    : 0) {}

    __device__ static int row() { return threadIdx.x % 32 / 8; }
    __device__ static int unit() { return threadIdx.x % 8; }

    // In shared memory.
    __device__ static int place(int step) {
        return (step * 4 + row()) * device::kBoxBytes + (unit() ^ (step % 2 * 4 + row())) * 16;
    }
};

// Brings the residual of a group's tiles, by one warp.
template <class S>
__device__ void load_chunks(Gemm const& g, GemmOrder const& order, SlotBarriers<S>& barriers,
                            unsigned char* slots, int rank, int group) {
    using Words = ChunkWords<S>;
    int left = count_tiles<S>(order) - group, slot = 0;
    uint32_t parity = 1;
    if (left > 0) device::wait(&barriers.begun[group], 0);
    for_each_tile<S, false>(order, rank, group, S::kGroups, [&](GemmTile const& tile) {
        int const chunks = left == 1 ? S::kSlots : S::kChunksOfTile;
        for (int chunk = 0; chunk < chunks; ++chunk) {
            Words words(g, place_of_chunk<S>(tile, chunk));
            unsigned char* const to = slots + slot * S::kChunkBytes;
            uint16_t const* from = static_cast<uint16_t const*>(g.residual) + words.first;
            device::wait(&barriers.free[group][slot], parity);
#pragma unroll 4
            for (int step = 0; step < Words::kSteps; ++step) {
                bool const inside = step < words.steps;
                device::copy_async(to + Words::place(step), inside ? from : g.residual, inside);
                from += words.stride;
            }
            device::arrive_behind_copies(&barriers.come[group][slot]);
            if (++slot == S::kSlots) slot = 0, parity ^= 1;
        }
        left -= S::kGroups;
    });
}

// Stores y of all groups' tiles, by one warp.
template <class S>
struct ChunkStores {
    using Words = ChunkWords<S>;

    GemmMaps const& maps;
    Gemm const& g;
    SlotBarriers<S>& barriers;
    unsigned char* const slots;  // of the first group
    unsigned char* const last_stage;

    __device__ void store(GemmTile const& at, unsigned char const* from) const {
        Words words(g, at);
        uint16_t* to = static_cast<uint16_t*>(g.y) + words.first;
#pragma unroll 1
        for (int step = 0; step < Words::kSteps; step += 4) {
            uint4 units[4];
#pragma unroll
            for (int i = 0; i < 4; ++i)
                units[i] = *reinterpret_cast<uint4 const*>(from + Words::place(i));
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                if (step + i < words.steps) *reinterpret_cast<uint4*>(to) = units[i];
                to += words.stride;
            }
            from += 4 * 4 * device::kBoxBytes;
        }
    }

    __device__ void run(GemmOrder const& order, int rank) const {
        bool const leads = threadIdx.x % 32 == 0;
        int left = count_tiles<S>(order), group = 0, turn = 0;
        for_each_tile<S, false>(order, rank, 0, 1, [&](GemmTile const& tile) {
            for (int chunk = 0; chunk < S::kChunksOfTile; ++chunk) {
                int const slot = (turn * S::kChunksOfTile + chunk) % S::kSlots;
                unsigned char* from = slots + (group * S::kSlots + slot) * S::kChunkBytes;
                GemmTile const at = place_of_chunk<S>(tile, chunk);
                device::wait(&barriers.ready[group][chunk], turn & 1);
                if (left > 1) {
                    store(at, from);
                    __syncwarp();
                    if (leads) device::arrive(&barriers.free[group][slot]);
                } else if (leads) {
                    // Nothing hides the block's last tile: by the copy engine it ends earlier.
                    if (chunk >= S::kSlots)
                        from = last_stage + (chunk - S::kSlots) * S::kChunkBytes;
                    device::store_tile(maps.y, from, at.col, at.row);
                    device::commit_stores();
                }
            }
            --left;
            if (++group == S::kGroups) group = 0, ++turn;
        });
        device::wait_for_stores<0>();
    }
};

// Warps of producers behind the first: one for each group's residual, and one for y.
template <class S>
__device__ void copy_chunks(GemmMaps const& maps, Gemm const& g, GemmOrder const& order,
                            GemmBarriers<S>& barriers, unsigned char* stages, int steps, int rank) {
    int const warp = static_cast<int>(threadIdx.x / 32) - 1;
    unsigned char* const slots = stages + S::kChunks;
    if (warp >= 0 && warp < S::kGroups)
        load_chunks<S>(g, order, barriers.slots, slots + warp * S::kSlots * S::kChunkBytes, rank,
                       warp);
    if (warp == S::kGroups) {
        int const last = count_tiles<S>(order) * steps % S::kStages;
        ChunkStores<S>{maps, g, barriers.slots, slots, stages + last * S::kStageBytes}.run(order,
                                                                                           rank);
    }
}

}  // namespace opfuse
