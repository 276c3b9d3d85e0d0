// What the Hopper kernels share: products of one warp group, masks, and results.
#pragma once
#include "../device/launch.cuh"
#include "../device/tma.cuh"
#include "../device/wgmma.cuh"
#include "softmax.cuh"
#include "tensor_map.h"

namespace opfuse {

// What the scores are: no more than scaled; the same, of batches that have their own numbers of
// keys; also with a mask that is the same for all queries and in shared memory; with one that the
// copy engine brings tile by tile; or anything else.
enum class Scores { kScaled, kCounted, kKeyMask, kTileMask, kAny };

// Whether the kernels whose blocks stay read these numbers; the others do for kCounted alone.  The
// mere code for it costs 3 to 14% of the time though it is not run
// (benchmarks/results/attention_h100_variants.txt).
__device__ __host__ constexpr bool counts_keys(Scores scores) {
    return scores == Scores::kCounted || scores == Scores::kAny;
}

template <bool kCounts>
__device__ auto keys_of_batch_if(Attention const& a, int batch) {
    if constexpr (kCounts)
        return keys_of_batch(a, batch);
    else
        return AllKeys{};
}

// Boxes that hold a row of an instance's size.
__device__ __host__ constexpr int boxes_of(int size) {
    return (size + device::kBoxColumns - 1) / device::kBoxColumns;
}

// One thread, first of all.
__device__ inline void prefetch_maps(AttentionMaps const& maps) {
    device::prefetch_map(maps.q);
    device::prefetch_map(maps.k);
    device::prefetch_map(maps.v);
}

// Programmatic launch where it pays: of several waves of blocks, the launches of a BERT or a ViT
// take longer with it than without (benchmarks/results/attention_h100_variants.txt).
inline device::Machine early_if(device::Machine const& machine, bool pays) {
    return pays ? machine : device::kInOrder;
}

// s = q k^T of 64 queries in boxes of S::kRows, and keys in boxes of S::kKeys; one group of
// products.
template <class T, class S, int kBlocks>
__device__ void issue_scores(float (&s)[kBlocks][4], uint64_t q, uint64_t k) {
#pragma unroll
    for (int step = 0; step < S::kSize / 16; ++step) {
        int const box = step / 4, inside = step % 4 * 32 / 16;  // of 32 bytes, in units of 16
        uint64_t const a = q + box * S::kRows * device::kBoxBytes / 16 + inside;
        uint64_t const b = k + box * S::kKeys * device::kBoxBytes / 16 + inside;
        if (step == 0)
            device::multiply_shared<T, false>(s, a, b);
        else
            device::multiply_shared<T, true>(s, a, b);
    }
    device::commit_products();
}

// out += p v, or = without kAdd; not a group of its own.
template <class T, class S, bool kAdd = true, int kSteps>
__device__ void add_values(float (&out)[S::kSize / 8][4], uint32_t const (&p)[kSteps][4],
                           uint64_t v) {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
        uint64_t const b = v + step * 16 * device::kBoxBytes / 16;
        if (kAdd || step > 0)
            device::multiply_registers<T, true>(out, p[step], b);
        else
            device::multiply_registers<T, false>(out, p[step], b);
    }
}

// The same as one group of products.
template <class T, class S, bool kAdd, int kSteps>
__device__ void issue_results(float (&out)[S::kSize / 8][4], uint32_t const (&p)[kSteps][4],
                              uint64_t v) {
    add_values<T, S, kAdd>(out, p, v);
    device::commit_products();
}

template <class T, int kSteps>
__device__ void pack_weights(uint32_t (&p)[kSteps][4], float const (&s)[2 * kSteps][4]) {
#pragma unroll
    for (int step = 0; step < kSteps; ++step)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            float const(&from)[4] = s[2 * step + i / 2];
            p[step][i] = device::pack<T>(from[i % 2 * 2], from[i % 2 * 2 + 1]);
        }
}

// What packing lost of the weights, as weights of their own.
template <class T, int kSteps>
__device__ void pack_rest(uint32_t (&rest)[kSteps][4], uint32_t const (&p)[kSteps][4],
                          float const (&s)[2 * kSteps][4]) {
#pragma unroll
    for (int step = 0; step < kSteps; ++step)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            float const(&from)[4] = s[2 * step + i / 2];
            float2 const kept = device::unpack<T>(p[step][i]);
            rest[step][i] = device::pack<T>(from[i % 2 * 2] - kept.x, from[i % 2 * 2 + 1] - kept.y);
        }
}

template <int kBlocks>
__device__ void clear(float (&out)[kBlocks][4]) {
#pragma unroll
    for (int i = 0; i < kBlocks; ++i)
#pragma unroll
        for (int e = 0; e < 4; ++e) out[i][e] = 0.f;
}

// Has the copy engine copy the rows from `row` on, S::kSize columns of them, in boxes of `rows`.
template <class S>
__device__ void copy_rows_of(unsigned char* to, CUtensorMap const& map, uint64_t* full, int rows,
                             int row, int head, int batch) {
#pragma unroll
    for (int box = 0; box < boxes_of(S::kSize); ++box)
        device::copy_box(to + box * rows * device::kBoxBytes, map, full, box * device::kBoxColumns,
                         row, head, batch);
}

// The same, announced.
template <class S>
__device__ void load_rows(unsigned char* to, CUtensorMap const& map, uint64_t* full, int rows,
                          int row, int head, int batch) {
    device::arrive_expecting(full, rows * boxes_of(S::kSize) * device::kBoxBytes);
    copy_rows_of<S>(to, map, full, rows, row, head, batch);
}

// Hides those of the keys from `first` on that the queries `row` and `row` + 8 do not see: mostly
// the end of the last blocks; all batches have all keys.  This lane's columns begin at `key`, which
// counts from `first`.
template <int kBlocks>
__device__ void hide_ends(float (&s)[kBlocks][4], Attention const& a, int row,
                          KeyRange const& all_see, int first, int key) {
    constexpr int kLast = 2;  // blocks
    int const end = first + 8 * kBlocks;
    if (all_see.begin <= first && all_see.end >= end) return;
    KeyRange const seen[2] = {keys_of_row(a, AllKeys{}, row), keys_of_row(a, AllKeys{}, row + 8)};
    if (all_see.begin > first || all_see.end < end - 8 * kLast)
        hide_scores(s, seen, first + key);
    else
        hide_scores<kBlocks - kLast>(s, seen, first + key);
}

// Each of a row's four lanes has two columns of each of four blocks, and gets one block.
__device__ inline void swap_columns(uint32_t (&w)[4]) {
    bool const odd = threadIdx.x & 1, high = threadIdx.x & 2;
    uint32_t first = __shfl_xor_sync(0xffffffffu, odd ? w[0] : w[1], 1);
    uint32_t second = __shfl_xor_sync(0xffffffffu, odd ? w[2] : w[3], 1);
    w[0] = odd ? first : w[0], w[1] = odd ? w[1] : first;
    w[2] = odd ? second : w[2], w[3] = odd ? w[3] : second;
    first = __shfl_xor_sync(0xffffffffu, high ? w[0] : w[2], 2);
    second = __shfl_xor_sync(0xffffffffu, high ? w[1] : w[3], 2);
    w[0] = high ? first : w[0], w[2] = high ? w[2] : first;
    w[1] = high ? second : w[1], w[3] = high ? w[3] : second;
}

// 16 aligned bytes, where `valid`.  One store, said outright: nvcc makes four of some of these.
__device__ inline void store_if(bool valid, void* to, uint32_t const (&w)[4]) {
    asm volatile(
        "{.reg .pred valid; setp.ne.b32 valid, %0, 0; "
        "@valid st.global.v4.b32 [%1], {%2, %3, %4, %5};}" ::"r"(static_cast<int>(valid)),
        "l"(to), "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3])
        : "memory");
}

// Writes two rows, of which `rows` says where each begins, and whether there is one.
template <class T, int kSize, class Rows>
__device__ void store_rows(Attention const& a, Rows rows, float const (&out)[kSize / 8][4],
                           RunningSoftmax softmax) {
    softmax.finish();
    int const part = threadIdx.x % 4;
#pragma unroll
    for (int r = 0; r < 2; ++r, rows.next()) {
        RowScale const scale = row_scale(softmax.sum[r], a.nan_guard);
        T* const y_row = rows.start();
#pragma unroll
        for (int i = 0; i < kSize / 8; i += 4) {
            uint32_t w[4] = {};
#pragma unroll
            for (int j = 0; j < 4 && i + j < kSize / 8; ++j)
                w[j] = device::pack<T>(scale(out[i + j][2 * r]), scale(out[i + j][2 * r + 1]));
            swap_columns(w);
            int const col = 8 * (i + part);
            store_if(rows.there() && col < a.value_size, y_row + col, w);
        }
    }
}

// Rows of one head, whose `y` is given.
template <class T>
struct ResultRows {
    Attention const& a;
    T* y;
    int row;

    __device__ T* start() const { return y + row * a.y.row; }
    __device__ bool there() const { return row < a.queries; }
    __device__ void next() { row += 8; }
};

// Writes the rows `row` and `row` + 8, those that there are; this lane's `y` is that of the head.
template <class T, int kSize>
__device__ void store_results(Attention const& a, T* y, int row, float const (&out)[kSize / 8][4],
                              RunningSoftmax const& softmax) {
    store_rows<T, kSize>(a, ResultRows<T>{a, y, row}, out, softmax);
}

// s = scale s + mask of a warp's 16 rows: `tile` is where they begin in boxes of `rows` rows and 64
// keys.
template <class T, int kBlocks>
__device__ void add_tile(float (&s)[kBlocks][4], unsigned char const* tile, int rows, float scale) {
    int const lane = threadIdx.x % 32, row = lane % 16;  // of the matrices' addresses
#pragma unroll
    for (int i = 0; i < kBlocks; i += 2) {
        int const chunk = (i % 8 + lane / 16) ^ row % 8;  // the swizzle of 128 bytes
        uint32_t pairs[4];  // of this block and the next: each of the rows `row` and `row` + 8
        device::load_matrices(pairs, tile + (i / 8 * rows + row) * device::kBoxBytes + 16 * chunk);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            float2 const own = device::unpack<T>(pairs[j]);
            float (&to)[4] = s[i + j / 2];
            to[j % 2 * 2] = fmaf(to[j % 2 * 2], scale, own.x);
            to[j % 2 * 2 + 1] = fmaf(to[j % 2 * 2 + 1], scale, own.y);
        }
    }
}

// The same of a mask that all rows share: floats, one a key.
template <int kBlocks>
__device__ void add_keys(float (&s)[kBlocks][4], unsigned char const* keys, float scale) {
    auto const* const pairs = reinterpret_cast<float2 const*>(keys) + threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
        float2 const own = pairs[4 * i];
        s[i][0] = fmaf(s[i][0], scale, own.x);
        s[i][1] = fmaf(s[i][1], scale, own.y);
        s[i][2] = fmaf(s[i][2], scale, own.x);
        s[i][3] = fmaf(s[i][3], scale, own.y);
    }
}

// The mask of a tile's scores in halves, on its way from memory while they are computed.
template <class T, int kBlocks>
struct EarlyMask {
    device::Vec<T, 2> pairs[2][kBlocks];

    __device__ void fetch(Attention const& a, MaskRows const& row, int key) {
        if (!a.mask.data || a.mask.is_float) return;
        bool const differ = masks_differ(row);
#pragma unroll
        for (int i = 0; i < kBlocks; ++i) {
            pairs[0][i] = mask_pair<T>(a, row.start[0], key + 8 * i);
            pairs[1][i] = differ ? mask_pair<T>(a, row.start[1], key + 8 * i) : pairs[0][i];
        }
    }
    __device__ void add(float (&s)[kBlocks][4], Attention const& a, MaskRows const& row,
                        int key) const {
        if (!a.mask.data) return;
        if (a.mask.is_float)
            return add_mask(s, row, key,
                            [&](int64_t start, int at) { return mask_pair<float>(a, start, at); });
#pragma unroll
        for (int i = 0; i < kBlocks; ++i)
#pragma unroll
            for (int e = 0; e < 4; ++e) s[i][e] += device::to_float(pairs[e / 2][i].at[e % 2]);
    }
};

template <int kBlocks>
struct NoMask {
    __device__ void fetch(Attention const&, MaskRows const&, int) {}
    __device__ void add(float (&)[kBlocks][4], Attention const&, MaskRows const&, int) const {}
};

}  // namespace opfuse
