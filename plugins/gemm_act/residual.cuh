// The residual of tiles that groups take by turns on Hopper.  It comes to a group's slots chunk by
// chunk, y takes its place, and a warp of the producers for each group copies both: a consumer that
// waits for what it stored itself finishes a tile of 192 rows in 4,900 clocks, not in 1,500.
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
        for (auto& barrier : barriers.ready[group]) device::init_barrier(&barrier, 4);
    }
}

// Where a chunk of a tile is in y and in the residual.
template <class S>
__device__ GemmTile place_of_chunk(GemmTile const& tile, int chunk) {
    constexpr int kAcross = S::kRows / S::kChunkRows;
    return {tile.row + chunk % kAcross * S::kChunkRows, tile.col + chunk / kAcross * 64};
}

// A group's last tile, where that is the block's last one, finds the chunks that its slots have no
// room for in a stage behind all others.
template <class S>
__device__ bool ends_block(int tiles, int group, int turn) {
    return turn * S::kGroups + group == tiles - 1;
}

// By one thread, behind the last stage of the last tile.
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

// What one warp does for the tiles of one group: 16 bytes a thread at a time, 4 rows.  They wait
// for memory elsewhere than the stages, which the copy engine gives in the order in which it is
// asked: where it brings the residual, 4096x768x3072 takes 2 us more.
template <class S>
struct ResidualWarp {
    static constexpr int kSlots = S::kSlots, kChunks = S::kChunksOfTile;
    static constexpr int kSteps = S::kChunkRows / 4, kAtOnce = 2;
    static_assert(kSteps % kAtOnce == 0);

    GemmMaps const& maps;
    Gemm const& g;
    SlotBarriers<S>& barriers;
    unsigned char* const slots;  // of this group
    unsigned char* const last_stage;
    int const group, tiles;  // the block's tiles
    int const row = threadIdx.x % 32 / 8, unit = threadIdx.x % 8;
    int turn = 0;  // the group's tiles before this one

    __device__ unsigned char* slot_of(int of, int chunk) const {
        return slots + (of * kChunks + chunk) % kSlots * S::kChunkBytes;
    }

    // Of this thread, in a chunk in shared memory.
    __device__ int place(int step) const {
        int const own = step * 4 + row;
        return own * device::kBoxBytes + (unit ^ own % 8) * 16;
    }

    // Elements before this thread's first ones of a chunk, and how many of its steps are inside.
    __device__ int64_t first(GemmTile const& at) const {
        return (at.row + row) * int64_t{g.cols} + at.col + unit * 8;
    }
    __device__ int inside(GemmTile const& at) const {
        if (at.col + unit * 8 >= g.cols) return 0;
        return static_cast<int>(min(int64_t{kSteps}, (g.rows - at.row - row + 3) / 4));
    }

    __device__ void load(GemmTile const& tile, int chunk) const {
        GemmTile const at = place_of_chunk<S>(tile, chunk);
        unsigned char* const to = slot_of(turn, chunk);
        uint16_t const* const all = static_cast<uint16_t const*>(g.residual);
        uint16_t const* from = all + first(at);
        int const steps = inside(at);
#pragma unroll kAtOnce
        for (int step = 0; step < kSteps; ++step) {
            device::copy_async(to + place(step), step < steps ? from : all, step < steps);
            from += 4 * int64_t{g.cols};
        }
        device::arrive_behind_copies(&barriers.come[group][(turn * kChunks + chunk) % kSlots]);
    }

    // The block's last tile is one that nothing hides: the copy engine, idle by then, is faster.
    __device__ void store_last(GemmTile const& at, int of, int chunk) const {
        if (row > 0 || unit > 0) return;
        device::store_tile(
            maps.y,
            chunk >= kSlots ? last_stage + (chunk - kSlots) * S::kChunkBytes : slot_of(of, chunk),
            at.col, at.row);
        device::commit_stores();
    }

    // Once the group has finished the chunk of its tile `of`.
    __device__ void store(GemmTile const& tile, int of, int chunk) const {
        device::wait(&barriers.ready[group][chunk], of & 1);
        GemmTile const at = place_of_chunk<S>(tile, chunk);
        if (ends_block<S>(tiles, group, of)) return store_last(at, of, chunk);
        unsigned char const* const from = slot_of(of, chunk);
        uint16_t* to = static_cast<uint16_t*>(g.y) + first(at);
        int const steps = inside(at);
        for (int step = 0; step < kSteps; step += kAtOnce) {
            uint4 units[kAtOnce];
#pragma unroll
            for (int i = 0; i < kAtOnce; ++i)
                units[i] = *reinterpret_cast<uint4 const*>(from + place(step + i));
#pragma unroll
            for (int i = 0; i < kAtOnce; ++i) {
                if (step + i < steps) *reinterpret_cast<uint4*>(to) = units[i];
                to += 4 * int64_t{g.cols};
            }
        }
    }

    // Waits until the slot of this chunk is free.
    __device__ void free_slot(GemmTile const& tile, GemmTile const& before, int chunk) const {
        if (chunk >= kSlots)
            store(tile, turn, chunk - kSlots);
        else if (turn > 0)
            store(before, turn - 1, chunk - kSlots + kChunks);
        else
            device::wait(&barriers.begun[group], 0);
    }

    __device__ void run(GemmOrder const& order, int rank) {
        GemmTile before{};
        for_each_tile<S, false>(order, rank, group, S::kGroups, [&](GemmTile const& tile) {
            int const chunks = ends_block<S>(tiles, group, turn) ? kSlots : kChunks;
            for (int chunk = 0; chunk < chunks; ++chunk) {
                free_slot(tile, before, chunk);
                __syncwarp();
                load(tile, chunk);
            }
            before = tile;
            ++turn;
        });
        if (turn == 0) return;
        int const last = ends_block<S>(tiles, group, turn - 1) ? 0 : kChunks - kSlots;
        for (int chunk = last; chunk < kChunks; ++chunk) store(before, turn - 1, chunk);
        device::wait_for_stores<0>();
    }
};

template <class S>
__device__ void tend_residual(GemmMaps const& maps, Gemm const& g, GemmOrder const& order,
                              GemmBarriers<S>& barriers, unsigned char* stages, int steps, int rank,
                              int group) {
    int const tiles = count_tiles<S>(order);
    ResidualWarp<S> warp{maps,
                         g,
                         barriers.slots,
                         stages + S::kChunks + group * S::kSlots * S::kChunkBytes,
                         stages + tiles * steps % S::kStages * S::kStageBytes,
                         group,
                         tiles};
    warp.run(order, rank);
}

}  // namespace opfuse
