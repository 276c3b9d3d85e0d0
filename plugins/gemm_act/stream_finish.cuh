// What finishes a tile of a product of few rows on Hopper.
#pragma once
#include "cluster.cuh"
#include "epilogue.cuh"
#include "launch.h"
#include "stream_shape.cuh"

namespace opfuse {

// Of a thread's sums, which are, of each box, columns lane / 4 + 8 r of the warp's 16, and of each
// 8 rows two.
template <class T, class S, bool kGated>
struct StreamFinish {
    static constexpr int kBlocks = S::kBlocks, kOut = kGated ? S::kBoxes / 2 : S::kBoxes;
    using Sums = float[S::kBoxes][kBlocks][4];
    // Of a tile.
    struct Place {
        int const row, col, rows_end, cols_end, box;

        __device__ Place(Gemm const& g, StreamPlan const& plan, GemmTile const& tile)
            : row(tile.row),
              col(tile.col),
              rows_end(min(static_cast<int>(g.rows), tile.row + plan.rows)),
              cols_end(min(g.cols, tile.col + plan.cols)),
              box(plan.box) {}
    };
    struct More {
        float bias[S::kBoxes][2];
        uint32_t residual[kOut][kBlocks][2];  // pairs of columns
    };

    Gemm const& g;
    uint32_t const own;  // blocks of 8 rows that this block of threads finishes
    int const warp, lane;

    __device__ bool has(int block) const { return own >> block & 1; }
    // Of 8 columns the first, or the tile's end where there are none.
    __device__ int col_of(Place const& place, int box, int r) const {
        int const inside = warp * 16 + r * 8;
        return inside < place.box ? place.col + box * place.box + inside : place.cols_end;
    }

    // Read when the tile begins.
    __device__ void load(More& more, Place const& place) const {
#pragma unroll
        for (int box = 0; box < S::kBoxes; ++box)
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                int const c = col_of(place, box % kOut, r) + lane / 4;
                T const* const bias = static_cast<T const*>(g.bias) + (box < kOut ? 0 : g.cols);
                more.bias[box][r] = g.bias && c < place.cols_end ? device::to_float(bias[c]) : 0.f;
            }
        T const* const residual = static_cast<T const*>(g.residual);
#pragma unroll
        for (int box = 0; box < kOut; ++box)
#pragma unroll
            for (int j = 0; j < kBlocks; ++j)
#pragma unroll
                for (int r = 0; r < 2; ++r) {
                    int const row = place.row + j * 8 + lane / 4;
                    int const c = col_of(place, box, r) + lane % 4 * 2;
                    bool const inside = row < place.rows_end && c < place.cols_end;
                    bool const there = g.residual && has(j) && inside;
                    T const* const from = residual + int64_t{row} * g.cols + c;
                    more.residual[box][j][r] =
                        there ? *reinterpret_cast<uint32_t const*>(from) : 0u;
                }
    }

    template <device::Activation kActivation>
    __device__ void finish_as(Sums& sums, More const& more, Place const& place) const {
#pragma unroll
        for (int box = 0; box < kOut; ++box)
#pragma unroll
            for (int j = 0; j < kBlocks; ++j) {
                if (!has(j)) continue;
                float (&four)[4] = sums[box][j];
                float const(&bias)[2] = more.bias[box];
                device::activate_four<kActivation>(four, {bias[0], bias[0], bias[1], bias[1]});
                if constexpr (kGated)
#pragma unroll
                    for (int i = 0; i < 4; ++i)
                        four[i] *= sums[kOut + box][j][i] + more.bias[kOut + box][i / 2];
                store(four, more.residual[box][j], place, box, j);
            }
    }

    __device__ void finish(Sums& sums, More const& more, Place const& place) const {
        using enum device::Activation;
        switch (g.activation) {
        case kNone: return finish_as<kNone>(sums, more, place);
        case kRelu: return finish_as<kRelu>(sums, more, place);
        case kGelu: return finish_as<kGelu>(sums, more, place);
        case kGeluTanh: return finish_as<kGeluTanh>(sums, more, place);
        case kQuickGelu: return finish_as<kQuickGelu>(sums, more, place);
        case kSilu: return finish_as<kSilu>(sums, more, place);
        }
    }

    __device__ void store(float const (&four)[4], uint32_t const (&residual)[2], Place const& place,
                          int box, int block) const {
        int const row = place.row + block * 8 + lane / 4;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            float2 const more = device::unpack<T>(device::turn(residual[r]));
            uint32_t const pair =
                device::turn(device::pack<T>(four[2 * r] + more.x, four[2 * r + 1] + more.y));
            int const c = col_of(place, box, r) + lane % 4 * 2;
            T* const y = static_cast<T*>(g.y) + int64_t{row} * g.cols + c;
            if (row < place.rows_end && c < place.cols_end) *reinterpret_cast<uint32_t*>(y) = pair;
        }
    }
};

}  // namespace opfuse
