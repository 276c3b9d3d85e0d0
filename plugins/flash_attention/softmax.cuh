// Scores of a tile in mma fragments, and the running softmax over the tiles of a row.
#pragma once
#include <cuda_runtime.h>

#include <cmath>

#include "../device/mma.cuh"
#include "../device/vec.cuh"
#include "launch.h"

namespace opfuse {

inline constexpr float kLog2E = 1.44269504f;

// One row of scores: which keys it sees, and where its mask is.
struct ScoreRow {
    int last_key;        // keys after this one are hidden; negative where all are
    int64_t mask_start;  // of key 0, in elements
};

__device__ inline ScoreRow score_row(Attention const& a, int64_t batch, int head, int query) {
    int const q = query < a.queries ? query : a.queries - 1;  // rows past the end read the last
    int const last = a.causal ? min(a.keys - 1, q + a.keys - a.queries) : a.keys - 1;
    return {last, batch * a.mask.batch + head * a.mask.head + q * a.mask.query};
}

// cap * tanh(x / cap), off by 1e-7 of the cap at most.
__device__ inline float capped(float x, float cap) {
    return cap - __fdividef(2.f * cap, 1.f + device::exp2_fast(2.f * kLog2E / cap * x));
}

template <class T>
__device__ float mask_at(AttentionMask const& mask, int64_t start, int key) {
    int64_t const at = start + key * mask.key;
    return mask.is_float ? static_cast<float const*>(mask.data)[at]
                         : device::to_float(static_cast<T const*>(mask.data)[at]);
}

// Adds `load(row's mask_start, key)` to the scores, a pair of keys each.
template <int kBlocks, class Load>
__device__ void add_mask(float (&s)[kBlocks][4], ScoreRow const (&row)[2], bool differ, int key,
                         Load load) {
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
        float2 const upper = load(row[0].mask_start, key + 8 * i);
        float2 const lower = differ ? load(row[1].mask_start, key + 8 * i) : upper;
        s[i][0] += upper.x;
        s[i][1] += upper.y;
        s[i][2] += lower.x;
        s[i][3] += lower.y;
    }
}

// Scores of kBlocks 8-key blocks and two rows: `s` as in fragment C, blocks at `key` + 8 i.
// Gives softcap(scale * s) + mask; the keys that a row does not see are not yet hidden.
// kPairs: the mask, if any, is `in_pairs`, which saves code.
template <class T, bool kPairs, int kBlocks>
__device__ void transform_scores(float (&s)[kBlocks][4], Attention const& a,
                                 ScoreRow const (&row)[2], int key) {
#pragma unroll
    for (int i = 0; i < kBlocks; ++i)
#pragma unroll
        for (int e = 0; e < 4; ++e) s[i][e] *= a.scale;
    if (a.softcap > 0.f) {
#pragma unroll
        for (int i = 0; i < kBlocks; ++i)
#pragma unroll
            for (int e = 0; e < 4; ++e) s[i][e] = capped(s[i][e], a.softcap);
    }
    if (!a.mask.data) return;
    bool const differ = row[0].mask_start != row[1].mask_start;
    // Keys past the end read the last ones.
    if ((kPairs || a.mask.in_pairs) && a.mask.is_float) {
        auto const* const data = static_cast<float const*>(a.mask.data);
        add_mask(s, row, differ, key, [&](int64_t start, int at) {
            return *reinterpret_cast<float2 const*>(data + start + min(at, a.keys - 2));
        });
    } else if (kPairs || a.mask.in_pairs) {
        auto const* const data = static_cast<T const*>(a.mask.data);
        add_mask(s, row, differ, key, [&](int64_t start, int at) {
            auto const pair = device::load<2>(data + start + min(at, a.keys - 2), 0);
            return float2{device::to_float(pair.at[0]), device::to_float(pair.at[1])};
        });
    } else {
        add_mask(s, row, differ, key, [&](int64_t start, int at) {
            return float2{mask_at<T>(a.mask, start, min(at, a.keys - 1)),
                          mask_at<T>(a.mask, start, min(at + 1, a.keys - 1))};
        });
    }
}

template <int kBlocks>
__device__ void hide_scores(float (&s)[kBlocks][4], ScoreRow const (&row)[2], int key) {
#pragma unroll
    for (int i = 0; i < kBlocks; ++i)
#pragma unroll
        for (int e = 0; e < 4; ++e)
            if (key + 8 * i + e % 2 > row[e / 2].last_key) s[i][e] = -INFINITY;
}

// The running maximum and sum of two rows; each lane sums its own columns only.
struct RunningSoftmax {
    float max[2] = {-INFINITY, -INFINITY};
    float sum[2] = {0.f, 0.f};

    // Turns scores into exp(score - maximum) and gives what earlier results are to be scaled by.
    // Weights are 2^(score * log2_scale).  kFused multiplies before it subtracts: one instruction
    // less, but not for scores near the end of fp32, such as masks have.
    template <bool kFused, int kBlocks>
    __device__ float2 update(float (&s)[kBlocks][4], float log2_scale) {
        float correction[2];
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            float top = max[r];
#pragma unroll
            for (int i = 0; i < kBlocks; ++i) top = fmaxf(top, fmaxf(s[i][2 * r], s[i][2 * r + 1]));
            top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
            top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
            float const origin = top == -INFINITY ? 0.f : top;  // -inf - -inf would be NaN
            correction[r] = device::exp2_fast((max[r] - origin) * log2_scale);
            max[r] = top;
            float const shift = origin * log2_scale;
            float total = 0.f;
#pragma unroll
            for (int i = 0; i < kBlocks; ++i)
#pragma unroll
                for (int e = 2 * r; e < 2 * r + 2; ++e) {
                    float const power = kFused ? fmaf(s[i][e], log2_scale, -shift)
                                               : (s[i][e] - origin) * log2_scale;
                    s[i][e] = device::exp2_fast(power);
                    total += s[i][e];
                }
            sum[r] = sum[r] * correction[r] + total;
        }
        return {correction[0], correction[1]};
    }

    // Adds up the four lanes of each row.
    __device__ void finish() {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 1);
            sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 2);
        }
    }
};

// result / sum; a row that sees no key has sum 0 and gives NaN, or 0 with the guard.
__device__ inline float normalised(float result, float sum, bool nan_guard) {
    return nan_guard && !(sum > 0.f) ? 0.f : result / sum;
}

// Rows [first, first + kRows) of [rows, cols] to shared memory in rows of kCols + 8 elements, which
// ldmatrix reads without bank conflicts; zeros past the end.  `lane` is one of kLanes.
template <int kRows, int kCols, int kLanes, class T>
__device__ void copy_rows(T* to, T const* from, int first, int rows, int cols, bool in_vectors,
                          int lane) {
    constexpr int kVec = device::kVecBytes / sizeof(T);
    constexpr int kStride = kCols + 8;
    static_assert(kRows * kCols % (kVec * kLanes) == 0);
    if (in_vectors) {
#pragma unroll
        for (int i = lane; i < kRows * kCols / kVec; i += kLanes) {
            int const row = i / (kCols / kVec), col = i % (kCols / kVec) * kVec;
            bool const valid = first + row < rows && col < cols;
            T const* source = from + (valid ? static_cast<int64_t>(first + row) * cols + col : 0);
            device::copy_async(to + row * kStride + col, source, valid);
        }
    } else {
        for (int i = lane; i < kRows * kCols; i += kLanes) {
            int const row = i / kCols, col = i % kCols;
            bool const valid = first + row < rows && col < cols;
            to[row * kStride + col] = valid ? from[static_cast<int64_t>(first + row) * cols + col]
                                            : device::from_float<T>(0.f);
        }
    }
}

}  // namespace opfuse
