// The residual of tiles that groups take by turns on Hopper.  It comes to a group's slots chunk by
// chunk, and y takes its place.  Warps of producers copy both: a consumer that waits for what it
// stored itself finishes a tile of 192 rows in 4,900 clocks, not in 2,500.
#pragma once
#include "launch.h"
#include "stores.cuh"

namespace opfuse {

template <class S>
__device__ void init_slot_barriers(SlotBarriers<S>& barriers) {
    for (int group = 0; group < S::kGroups; ++group) {
        device::init_barrier(&barriers.begun[group], 1);
        for (auto& barrier : barriers.come[group]) device::init_barrier(&barrier, 32);
        for (auto& barrier : barriers.ready[group]) device::init_barrier(&barrier, 4);
    }
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

// How a warp brings a chunk: 16 bytes a thread, 4 rows at a time.  They wait for memory elsewhere
// than the stages, which the copy engine gives in the order in which it is asked: where it brings
// the residual, 4096x768x3072 takes 2 us more.  But where y goes so, 3 us more.
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

// Brings the residual of a group's tiles and stores their y, by one warp.
template <class S>
struct ChunkCopies {
    static constexpr int kSlots = S::kSlots, kChunks = S::kChunksOfTile;
    using Words = ChunkWords<S>;

    GemmMaps const& maps;
    Gemm const& g;
    SlotBarriers<S>& barriers;
    unsigned char* const slots;  // of this group
    int const group;

    // Once the group has finished the chunk of its tile number `turn`.
    __device__ void store(GemmTile const& tile, int turn, int chunk, unsigned char* from) const {
        GemmTile const at = place_of_chunk<S>(tile, chunk);
        device::wait(&barriers.ready[group][chunk], turn & 1);
        device::store_tile(maps.y, from, at.col, at.row);
        device::commit_stores();
    }

    __device__ void load(GemmTile const& tile, int chunk, int slot) const {
        Words words(g, place_of_chunk<S>(tile, chunk));
        unsigned char* const to = slots + slot * S::kChunkBytes;
        uint16_t const* from = static_cast<uint16_t const*>(g.residual) + words.first;
#pragma unroll 4
        for (int step = 0; step < Words::kSteps; ++step) {
            bool const inside = step < words.steps;
            device::copy_async_once(to + Words::place(step), inside ? from : g.residual, inside);
            from += words.stride;
        }
        device::arrive_behind_copies(&barriers.come[group][slot]);
    }

    // By one thread: what is in the slot of this chunk goes.
    __device__ void free_slot(GemmTile const& tile, GemmTile const& before, int turn, int chunk,
                              int slot) const {
        bool const is_own = chunk >= kSlots;
        if (!is_own && turn == 0) return device::wait(&barriers.begun[group], 0);
        store(is_own ? tile : before, is_own ? turn : turn - 1,
              is_own ? chunk - kSlots : chunk - kSlots + kChunks, slots + slot * S::kChunkBytes);
        device::wait_for_stores<0>();
    }

    __device__ void run(GemmOrder const& order, unsigned char* last_stage, int rank) const {
        bool const leads = threadIdx.x % 32 == 0;
        int left = count_tiles<S>(order) - group, turn = 0, slot = 0;
        GemmTile before{};
        for_each_tile<S, false>(order, rank, group, S::kGroups, [&](GemmTile const& tile) {
            int const chunks = left == 1 ? kSlots : kChunks;
            for (int chunk = 0; chunk < chunks; ++chunk) {
                if (leads) free_slot(tile, before, turn, chunk, slot);
                __syncwarp();
                load(tile, chunk, slot);
                if (++slot == kSlots) slot = 0;
            }
            before = tile;
            left -= S::kGroups;
            ++turn;
        });
        if (turn == 0 || !leads) return;
        bool const ends = left + S::kGroups == 1;  // the block
        for (int chunk = ends ? 0 : kChunks - kSlots; chunk < kChunks; ++chunk) {
            bool const in_stage = ends && chunk >= kSlots;
            store(before, turn - 1, chunk,
                  in_stage ? last_stage + (chunk - kSlots) * S::kChunkBytes
                           : slots + slot * S::kChunkBytes);
            if (++slot == kSlots) slot = 0;
        }
        device::wait_for_stores<0>();
    }
};

// Warps of producers behind the first, one for each group.
template <class S>
__device__ void copy_chunks(GemmMaps const& maps, Gemm const& g, GemmOrder const& order,
                            GemmBarriers<S>& barriers, unsigned char* stages, int steps, int rank) {
    int const group = static_cast<int>(threadIdx.x / 32) - 1;
    if (group < 0 || group >= S::kGroups) return;
    int const last = count_tiles<S>(order) * steps % S::kStages;
    unsigned char* const slots = stages + S::kChunks + group * S::kSlots * S::kChunkBytes;
    ChunkCopies<S>{maps, g, barriers.slots, slots, group}.run(order, stages + last * S::kStageBytes,
                                                              rank);
}

}  // namespace opfuse
