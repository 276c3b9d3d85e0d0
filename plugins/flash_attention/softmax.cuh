// Scores of a tile in mma fragments, and the running softmax over the tiles of a row.
#pragma once
#include <cuda_runtime.h>

#include <cmath>

#include "../device/mma.cuh"
#include "../device/vec.cuh"
#include "launch.h"

namespace opfuse {

inline constexpr float kLog2E = 1.44269504f;

template <class T>
__device__ T* head_of(Heads const& heads, int64_t batch, int head) {
    return static_cast<T*>(heads.data) + batch * heads.batch + head * heads.head;
}

// Scores with such a mask, times log2(e), lie so far below those with a higher one that they weigh
// nothing, exactly.
inline constexpr float kHiding = -1e37f, kSeen = -1e30f;

struct KeyRange {
    int begin, end;
};

// How many keys a batch is said to have, and how many of these there are: all of them, or what was
// read.  Types of their own, for with even a struct of two equal numbers ptxas orders the loop of a
// kernel that reads none otherwise.
struct AllKeys {
    __device__ static int said(Attention const& a) { return a.keys; }
    __device__ static int there(Attention const& a) { return a.keys; }
};
struct KeyCount {
    int said_, there_;

    __device__ int said(Attention const&) const { return said_; }
    __device__ int there(Attention const&) const { return there_; }
};

__device__ inline KeyCount keys_of_batch(Attention const& a, int64_t batch) {
    if (!a.lengths.data) return {a.keys, a.keys};
    int64_t const at = batch * a.lengths.step, most = INT32_MAX;
    int64_t const given = a.lengths.is_long ? static_cast<int64_t const*>(a.lengths.data)[at]
                                            : static_cast<int32_t const*>(a.lengths.data)[at];
    int const said = static_cast<int>(min(max(given, -most), most));
    return {said, min(max(said, 0), a.keys)};
}

// The keys that any of the queries sees; `last` may lie past the end.
template <class Keys>
__device__ KeyRange keys_of_any(Attention const& a, Keys const& keys, int first, int last) {
    int64_t const shift = static_cast<int64_t>(keys.said(a)) - a.queries, none = 0;
    int64_t const all = keys.there(a);
    return {static_cast<int>(min(max(first + shift - a.behind, none), all)),
            static_cast<int>(max(min(last + shift + a.ahead + 1, all), none))};
}

// The keys that all of the queries see.
template <class Keys>
__device__ KeyRange keys_of_all(Attention const& a, Keys const& keys, int first, int last) {
    return {keys_of_any(a, keys, last, last).begin, keys_of_any(a, keys, first, first).end};
}

// The keys that one query sees; rows past the end read the last.
template <class Keys>
__device__ KeyRange keys_of_row(Attention const& a, Keys const& keys, int query) {
    int const q = min(query, a.queries - 1);
    return keys_of_any(a, keys, q, q);
}

// Where a query's mask begins, in elements.
__device__ inline int64_t mask_start(Attention const& a, int64_t batch, int head, int query) {
    return batch * a.mask.batch + head * a.mask.head + min(query, a.queries - 1) * a.mask.query;
}

template <class T>
__device__ float slope_of(Attention const& a, int head) {
    if (!a.slopes.data) return 0.f;
    return a.slopes.is_float ? static_cast<float const*>(a.slopes.data)[head]
                             : device::to_float(static_cast<T const*>(a.slopes.data)[head]);
}

// The key that a query stands at: the last one of the batch at the last.
template <class Keys>
__device__ int position_of(Attention const& a, Keys const& keys, int query) {
    return query + keys.said(a) - a.queries;
}

// What is added to the scores of two rows.
struct MaskRows {
    int64_t start[2];  // of their masks
    float slope[2];
    int position[2];

    template <class T, class Keys>
    __device__ void set(int r, Attention const& a, Keys const& keys, int64_t batch, int head,
                        int query) {
        start[r] = mask_start(a, batch, head, query);
        slope[r] = slope_of<T>(a, head);
        position[r] = position_of(a, keys, query);
    }
};

// Those of the queries `query` and `query` + 8.
template <class T, class Keys>
__device__ MaskRows mask_rows(Attention const& a, Keys const& keys, int64_t batch, int head,
                              int query) {
    MaskRows rows;
    rows.set<T>(0, a, keys, batch, head, query);
    rows.set<T>(1, a, keys, batch, head, query + 8);
    return rows;
}

__device__ inline float distance(int position, int key) {
    return fabsf(static_cast<float>(position - key));
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

// Two neighbouring keys of a mask that is `in_pairs`; keys past the end read the last ones.
template <class M>
__device__ device::Vec<M, 2> mask_pair(Attention const& a, int64_t start, int key) {
    return device::load<2>(static_cast<M const*>(a.mask.data) + start + min(key, a.keys - 2), 0);
}

__device__ inline bool masks_differ(MaskRows const& row) { return row.start[0] != row.start[1]; }

// Scores of kBlocks 8-key blocks and two rows: `s` as in fragment C, blocks at `key` + 8 i.
// Gives softcap(scale * s).
template <int kBlocks>
__device__ void scale_scores(float (&s)[kBlocks][4], Attention const& a) {
#pragma unroll
    for (int i = 0; i < kBlocks; ++i)
#pragma unroll
        for (int e = 0; e < 4; ++e) s[i][e] *= a.scale;
    if (!(a.softcap > 0.f)) return;
#pragma unroll
    for (int i = 0; i < kBlocks; ++i)
#pragma unroll
        for (int e = 0; e < 4; ++e) s[i][e] = capped(s[i][e], a.softcap);
}

// Adds what `load(start of the row's mask, key)` gives for two neighbouring keys.
template <int kBlocks, class Load>
__device__ void add_mask(float (&s)[kBlocks][4], MaskRows const& row, int key, Load load) {
    bool const differ = masks_differ(row);
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
        auto const upper = load(row.start[0], key + 8 * i);
        auto const lower = differ ? load(row.start[1], key + 8 * i) : upper;
#pragma unroll
        for (int e = 0; e < 2; ++e) {
            s[i][e] += device::to_float(upper.at[e]);
            s[i][2 + e] += device::to_float(lower.at[e]);
        }
    }
}

// Adds the mask; kPairs: it is `in_pairs`, if there is any, which saves code.
template <class T, bool kPairs, int kBlocks>
__device__ void add_mask(float (&s)[kBlocks][4], Attention const& a, MaskRows const& row, int key) {
    if (!a.mask.data) return;
    if ((kPairs || a.mask.in_pairs) && a.mask.is_float)
        return add_mask(s, row, key,
                        [&](int64_t start, int at) { return mask_pair<float>(a, start, at); });
    if (kPairs || a.mask.in_pairs)
        return add_mask(s, row, key,
                        [&](int64_t start, int at) { return mask_pair<T>(a, start, at); });
    add_mask(s, row, key, [&](int64_t start, int at) {
        return device::Vec<float, 2>{{mask_at<T>(a.mask, start, min(at, a.keys - 1)),
                                      mask_at<T>(a.mask, start, min(at + 1, a.keys - 1))}};
    });
}

// Takes away what the distance of keys costs.
template <int kBlocks>
__device__ void add_slopes(float (&s)[kBlocks][4], Attention const& a, MaskRows const& row,
                           int key) {
    if (!a.slopes.data) return;
#pragma unroll
    for (int i = 0; i < kBlocks; ++i)
#pragma unroll
        for (int e = 0; e < 4; ++e)
            s[i][e] -= row.slope[e / 2] * distance(row.position[e / 2], key + 8 * i + e % 2);
}

// Hides what is not seen of the blocks from kFrom on.
template <int kFrom = 0, int kBlocks>
__device__ void hide_scores(float (&s)[kBlocks][4], KeyRange const (&seen)[2], int key) {
#pragma unroll
    for (int i = kFrom; i < kBlocks; ++i)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            int const own = key + 8 * i + e % 2;
            if (own < seen[e / 2].begin || own >= seen[e / 2].end) s[i][e] = -INFINITY;
        }
}

// The running maximum and sum of two rows; each lane sums its own columns only.
//
// A maximum that lags behind would spare most of the scaling of earlier results, but then no weight
// is exactly 1, which makes results of fp16 weights 3% less accurate.
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

// What a partial result with maximum `max` is scaled by where the maximum of all is `top`.
__device__ inline float share(float max, float top, float log2_scale) {
    return device::exp2_fast((max - (top == -INFINITY ? 0.f : top)) * log2_scale);
}

// Scales the results of two rows, which is rarely needed.
template <int kBlocks>
__device__ void scale_rows(float (&out)[kBlocks][4], float2 factor) {
    if (!__any_sync(0xffffffffu, factor.x != 1.f || factor.y != 1.f)) return;
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
        out[i][0] *= factor.x;
        out[i][1] *= factor.x;
        out[i][2] *= factor.y;
        out[i][3] *= factor.y;
    }
}

// Divides the results of a row by the sum of its weights: by 0 for a row that sees no key, which
// gives NaN, or 0 with the guard.  It multiplies by the reciprocal: an exact division is a function
// call, before which ptxas would wait for all tensor-core products under way.
struct RowScale {
    float factor;
    bool nothing;

    __device__ float operator()(float result) const { return nothing ? 0.f : result * factor; }
};

__device__ inline RowScale row_scale(float sum, bool nan_guard) {
    return {__fdividef(1.f, sum), nan_guard && !(sum > 0.f)};
}

__device__ inline float normalised(float result, float sum, bool nan_guard) {
    return row_scale(sum, nan_guard)(result);
}

// Rows [first, first + kRows) of [rows, cols], `stride` elements apart, to shared memory in rows of
// kCols + 8 elements, which ldmatrix reads without bank conflicts; zeros past the end.  `lane` is
// one of kLanes.
template <int kRows, int kCols, int kLanes, class T>
__device__ void copy_rows(T* to, T const* from, int64_t stride, int first, int rows, int cols,
                          bool in_vectors, int lane) {
    constexpr int kVec = device::kVecBytes / sizeof(T);
    constexpr int kStride = kCols + 8;
    static_assert(kRows * kCols % (kVec * kLanes) == 0);
    if (in_vectors) {
#pragma unroll
        for (int i = lane; i < kRows * kCols / kVec; i += kLanes) {
            int const row = i / (kCols / kVec), col = i % (kCols / kVec) * kVec;
            bool const valid = first + row < rows && col < cols;
            T const* const source = from + (valid ? (first + row) * stride + col : 0);
            device::copy_async(to + row * kStride + col, source, valid);
        }
    } else {
        for (int i = lane; i < kRows * kCols; i += kLanes) {
            int const row = i / kCols, col = i % kCols;
            bool const valid = first + row < rows && col < cols;
            to[row * kStride + col] =
                valid ? from[(first + row) * stride + col] : device::from_float<T>(0.f);
        }
    }
}

}  // namespace opfuse
