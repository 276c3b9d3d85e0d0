// Parts of the depth: blocks of a cluster that multiply for one tile give each other their sums.
//
// The tile's columns are cut in slices of 16, those of a warp, which gives all of its sums to the
// one block that finishes them.
#pragma once
#include "cluster.cuh"
#include "epilogue.cuh"
#include "launch.h"
#include "shape.cuh"

namespace opfuse {

template <class T, class S>
struct GemmExchange {
    static_assert(S::kHeights == 1 || !S::kParts);
    static constexpr int kSlices = 4 * S::kGroups, kBlocks = S::kRows / 8;

    // What is added to a block: of columns lane / 4 + 8 r, and pairs of columns of the residual.
    struct More {
        float bias[2];
        uint32_t residual[2];
    };

    Gemm const& g;
    GemmTile const tile;
    float4* const sums;  // [parts][own slices][kBlocks][32 lanes]
    uint64_t* const barrier;
    int const parts, rank, warp, lane;

    __device__ int first_slice(int of_rank) const { return kSlices * of_rank / parts; }
    __device__ int slices_of(int of_rank) const {
        return first_slice(of_rank + 1) - first_slice(of_rank);
    }
    // Blocks of rows that are there: of the others nothing is given.
    __device__ int blocks() const {
        return static_cast<int>(min((g.rows - tile.row + 7) / 8, int64_t{kBlocks}));
    }

    // Announces what is given, once, before it is.
    __device__ void expect() const {
        int const given = parts * slices_of(rank) * blocks();
        device::arrive_expecting(barrier, given * 32 * static_cast<int>(sizeof(float4)));
    }

    __device__ void give(float const (&own)[kBlocks][4]) const {
        int const owner = (warp * parts + parts - 1) / kSlices;
        int const slice = rank * slices_of(owner) + warp - first_slice(owner);
        uint32_t const to =
            device::address_in(device::shared_address(sums + slice * kBlocks * 32 + lane), owner);
        uint32_t const done = device::address_in(device::shared_address(barrier), owner);
        int const last = blocks();
#pragma unroll
        for (int block = 0; block < kBlocks; ++block)
            if (block < last) device::store_in(to + block * 32 * sizeof(float4), own[block], done);
    }

    __device__ int col(int slice) const { return tile.col + slice * 16; }

    // Of the slice's block of rows.  The residual is read by rows.
    __device__ More load_more(int slice, int block) const {
        More more{};
        int64_t const row = tile.row + block * 8 + lane / 4;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            int const c = col(slice) + r * 8 + lane / 4, pair = col(slice) + r * 8 + lane % 4 * 2;
            if (g.bias && c < g.cols)
                more.bias[r] = device::to_float(static_cast<T const*>(g.bias)[c]);
            T const* const from = static_cast<T const*>(g.residual) + row * g.cols + pair;
            if (g.residual && row < g.rows && pair < g.cols)
                more.residual[r] = *reinterpret_cast<uint32_t const*>(from);
        }
        return more;
    }

    // Sums in the order of the parts: the same bits whoever adds.
    __device__ void finish_block(int slice, int block, More const& more) const {
        float four[4] = {more.bias[0], more.bias[0], more.bias[1], more.bias[1]};
        float4 const* const from =
            sums + ((slice - first_slice(rank)) * kBlocks + block) * 32 + lane;
        for (int part = 0; part < parts; ++part) {
            float4 const given = from[part * slices_of(rank) * kBlocks * 32];
            four[0] += given.x, four[1] += given.y, four[2] += given.z, four[3] += given.w;
        }
        device::activate_as(g.activation, four);
        int64_t const row = tile.row + block * 8 + lane / 4;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            float2 const residual = device::unpack<T>(device::turn(more.residual[r]));
            uint32_t const pair = device::turn(
                device::pack<T>(four[2 * r] + residual.x, four[2 * r + 1] + residual.y));
            int const c = col(slice) + r * 8 + lane % 4 * 2;
            T* const y = static_cast<T*>(g.y) + row * g.cols + c;
            if (row < g.rows && c < g.cols) *reinterpret_cast<uint32_t*>(y) = pair;
        }
    }

    // Warps take the blocks of the slices that this block of threads finishes in turn.
    __device__ void finish() const {
        int const of_slice = blocks(), units = slices_of(rank) * of_slice;
        auto const load = [&](int unit) {
            return unit < units ? load_more(first_slice(rank) + unit / of_slice, unit % of_slice)
                                : More{};
        };
        More more = load(warp);
        device::wait(barrier, 0);
#pragma unroll 1
        for (int unit = warp; unit < units; unit += kSlices) {
            More const next = load(unit + kSlices);
            finish_block(first_slice(rank) + unit / of_slice, unit % of_slice, more);
            more = next;
        }
    }
};

}  // namespace opfuse
