// Parts of the depth: blocks of a cluster that multiply for one tile give each other their sums.
//
// Of few rows, the tile's columns are cut in slices of 16, those of a warp, which gives all of its
// sums to the one block that finishes them.
#pragma once
#include "cluster.cuh"
#include "epilogue.cuh"
#include "launch.h"
#include "shape.cuh"

namespace opfuse {

template <class T, class S, bool kGated>
struct GemmExchange {
    static constexpr int kSlices = 4 * S::kGroups, kBlocks = S::kRows / 8;
    static constexpr int kKinds = S::kHeights;  // gated: of the gate, and of what it lets through
    static_assert(!S::kParts || kKinds == (kGated ? 2 : 1));

    // What is added to a block: columns lane / 4 + 8 r, and pairs of rows of the residual.
    struct More {
        float bias[kKinds][2];
        uint32_t residual[2];
    };

    Gemm const& g;
    GemmTile const tile;
    float4* const sums;  // [parts][own slices][kKinds][kBlocks][32 lanes]
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
        int const given = parts * slices_of(rank) * kKinds * blocks();
        device::arrive_expecting(barrier, given * 32 * static_cast<int>(sizeof(float4)));
    }

    __device__ void give(float const (&own)[S::kHeights][kBlocks][4]) const {
        int const owner = (warp * parts + parts - 1) / kSlices;
        int const slice = rank * slices_of(owner) + warp - first_slice(owner);
        uint32_t const to = device::address_in(
            device::shared_address(sums + slice * kKinds * kBlocks * 32 + lane), owner);
        uint32_t const done = device::address_in(device::shared_address(barrier), owner);
        int const last = blocks();
#pragma unroll
        for (int i = 0; i < kKinds * kBlocks; ++i)
            if (i % kBlocks < last)
                device::store_in(to + i * 32 * sizeof(float4), own[i / kBlocks][i % kBlocks], done);
    }

    __device__ int col(int slice) const { return tile.col + slice * 16; }

    // Of the slice's block of rows.  The residual is read by rows, and turned.
    __device__ More load_more(int slice, int block) const {
        More more{};
        int const c = col(slice) + lane / 4;
#pragma unroll
        for (int i = 0; i < kKinds * 2; ++i) {
            T const* const bias = static_cast<T const*>(g.bias) + (i / 2 > 0 ? g.cols : 0);
            if (g.bias && c + i % 2 * 8 < g.cols)
                more.bias[i / 2][i % 2] = device::to_float(bias[c + i % 2 * 8]);
        }
        int64_t const row = tile.row + block * 8 + lane / 4;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            int const pair = col(slice) + r * 8 + lane % 4 * 2;
            T const* const from = static_cast<T const*>(g.residual) + row * g.cols + pair;
            if (!kGated && g.residual && row < g.rows && pair < g.cols)
                more.residual[r] = *reinterpret_cast<uint32_t const*>(from);
        }
        return more;
    }

    // Sums in the order of the parts: the same bits whoever adds.
    __device__ void add_parts(float (&four)[4], int slice, int kind, int block,
                              float const (&bias)[2]) const {
        int const slices = slices_of(rank);
        float4 const* from =
            sums + (((slice - first_slice(rank)) * kKinds + kind) * kBlocks + block) * 32 + lane;
        four[0] = four[1] = bias[0], four[2] = four[3] = bias[1];
        for (int part = 0; part < parts; ++part) {
            float4 const more = from[part * slices * kKinds * kBlocks * 32];
            four[0] += more.x, four[1] += more.y, four[2] += more.z, four[3] += more.w;
        }
    }

    __device__ void finish_block(int slice, int block, More const& more) const {
        float four[4];
        add_parts(four, slice, 0, block, more.bias[0]);
        device::activate_as(g.activation, four);
        if constexpr (kGated) {
            float up[4];
            add_parts(up, slice, 1, block, more.bias[1]);
#pragma unroll
            for (int i = 0; i < 4; ++i) four[i] *= up[i];
        }
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

// Of a pair of blocks, each adds and keeps the sums of one height, that of its rank.
template <class S>
struct PairExchange {
    static constexpr int kBlocks = S::kRows / 8, kThreads = 128 * S::kGroups;
    static constexpr int kBytes = kBlocks * kThreads * static_cast<int>(sizeof(float4));
    static_assert(!S::kPairs || (S::kHeights == 2 && kBytes <= S::kExchangeBytes));

    float4* const given;  // [kBlocks][kThreads]
    uint64_t* const barrier;
    int const rank, thread;

    __device__ void add(float (&sums)[S::kHeights][kBlocks][4]) const {
        uint32_t const to = device::address_in(device::shared_address(given + thread), 1 - rank);
        uint32_t const done = device::address_in(device::shared_address(barrier), 1 - rank);
#pragma unroll
        for (int j = 0; j < kBlocks; ++j) {
            float other[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                float const low = sums[0][j][i], high = sums[S::kHeights - 1][j][i];
                sums[0][j][i] = rank == 0 ? low : high;
                other[i] = rank == 0 ? high : low;
            }
            device::store_in(to + j * kThreads * sizeof(float4), other, done);
        }
        device::wait(barrier, 0);
#pragma unroll
        for (int j = 0; j < kBlocks; ++j) {
            float4 const more = given[j * kThreads + thread];
            sums[0][j][0] += more.x, sums[0][j][1] += more.y;
            sums[0][j][2] += more.z, sums[0][j][3] += more.w;
        }
    }
};

}  // namespace opfuse
