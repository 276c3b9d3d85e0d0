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
    struct More {
        float bias[S::kBoxes][2];
        uint32_t residual[kOut][kBlocks][2];  // pairs of columns
    };

    Gemm const& g;
    uint32_t const own;  // blocks of 8 rows that this block of threads finishes
    int const warp, lane;

    __device__ bool has(int block) const { return own >> block & 1; }
    __device__ int col_of(int col, int box, int r) const {
        return col + box * 64 + warp * 16 + r * 8;
    }

    // Read when the tile begins.
    __device__ void load(More& more, int col) const {
#pragma unroll
        for (int box = 0; box < S::kBoxes; ++box)
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                int const c = col_of(col, box % kOut, r) + lane / 4;
                T const* const bias = static_cast<T const*>(g.bias) + (box < kOut ? 0 : g.cols);
                more.bias[box][r] = g.bias && c < g.cols ? device::to_float(bias[c]) : 0.f;
            }
        T const* const residual = static_cast<T const*>(g.residual);
#pragma unroll
        for (int box = 0; box < kOut; ++box)
#pragma unroll
            for (int j = 0; j < kBlocks; ++j)
#pragma unroll
                for (int r = 0; r < 2; ++r) {
                    int const row = j * 8 + lane / 4, c = col_of(col, box, r) + lane % 4 * 2;
                    bool const there = g.residual && has(j) && row < g.rows && c < g.cols;
                    T const* const from = residual + int64_t{row} * g.cols + c;
                    more.residual[box][j][r] =
                        there ? *reinterpret_cast<uint32_t const*>(from) : 0u;
                }
    }

    template <device::Activation kActivation>
    __device__ void finish_as(Sums& sums, More const& more, int col) const {
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
                store(four, more.residual[box][j], j * 8 + lane / 4, col_of(col, box, 0));
            }
    }

    __device__ void finish(Sums& sums, More const& more, int col) const {
        using enum device::Activation;
        switch (g.activation) {
        case kNone: return finish_as<kNone>(sums, more, col);
        case kRelu: return finish_as<kRelu>(sums, more, col);
        case kGelu: return finish_as<kGelu>(sums, more, col);
        case kGeluTanh: return finish_as<kGeluTanh>(sums, more, col);
        case kQuickGelu: return finish_as<kQuickGelu>(sums, more, col);
        case kSilu: return finish_as<kSilu>(sums, more, col);
        }
    }

    __device__ void store(float const (&four)[4], uint32_t const (&residual)[2], int row,
                          int col) const {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            float2 const more = device::unpack<T>(device::turn(residual[r]));
            uint32_t const pair =
                device::turn(device::pack<T>(four[2 * r] + more.x, four[2 * r + 1] + more.y));
            int const c = col + r * 8 + lane % 4 * 2;
            T* const y = static_cast<T*>(g.y) + int64_t{row} * g.cols + c;
            if (row < g.rows && c < g.cols) *reinterpret_cast<uint32_t*>(y) = pair;
        }
    }
};

}  // namespace opfuse
