// y = softmax(scale q k^T + mask) v for many queries, on mma.sync: sm_80 and later.
//
// A block of four warps has kRows queries of one head and walks over its keys, kKeys at a time.  A
// warp keeps its queries' results and scores in registers.  The next keys travel while values are
// multiplied, and values while keys are.
#pragma once
#include "../device/launch.cuh"
#include "softmax.cuh"

namespace opfuse {

// ---- kernels

// kSize: the head sizes rounded up to an instance.
template <class T, int kSize, bool kPlain>
struct PrefillShape {
    static constexpr int kWarps = 4;
    static constexpr int kThreads = 32 * kWarps;
    static constexpr int kTiles = kSize <= (kPlain ? 128 : 96) ? 2 : 1;  // of 16 queries: registers
    static constexpr int kRows = 16 * kTiles * kWarps;
    static constexpr int kKeys = kSize <= 192 ? 64 : 32;  // shared memory: 99 KB on sm_86
    static constexpr int kStride = kSize + 8;             // elements, of a row in shared memory
    static constexpr int kSharedBytes = (kRows + 2 * kKeys) * kStride * sizeof(T);
};

// s += q k^T for this warp's queries; lanes read rows as ldmatrix wants them.
template <class T, int kSize, int kTiles, int kBlocks>
__device__ void multiply_keys(float (&s)[kTiles][kBlocks][4], T const* q, T const* k, int lane) {
    constexpr int kStride = kSize + 8;
    T const* const q_row = q + lane % 16 * kStride + lane / 16 * 8;
    T const* const k_row = k + (lane / 16 * 8 + lane % 8) * kStride + lane / 8 % 2 * 8;
#pragma unroll
    for (int d = 0; d < kSize; d += 16) {
        uint32_t a[kTiles][4];
#pragma unroll
        for (int m = 0; m < kTiles; ++m) device::load_matrices(a[m], q_row + m * 16 * kStride + d);
#pragma unroll
        for (int n = 0; n < kBlocks; n += 2) {
            uint32_t b[4];
            device::load_matrices(b, k_row + n * 8 * kStride + d);
#pragma unroll
            for (int m = 0; m < kTiles; ++m) {
                device::multiply_add<T>(s[m][n], a[m], b[0], b[1]);
                device::multiply_add<T>(s[m][n + 1], a[m], b[2], b[3]);
            }
        }
    }
}

// out += p v, with the weights p in registers as scores were.
template <class T, int kSize, int kTiles, int kBlocks>
__device__ void multiply_values(float (&out)[kTiles][kSize / 8][4],
                                float const (&p)[kTiles][kBlocks][4], T const* v, int lane) {
    constexpr int kStride = kSize + 8;
    T const* const v_row = v + lane % 16 * kStride + lane / 16 * 8;
#pragma unroll
    for (int n = 0; n < kBlocks; n += 2) {
        uint32_t a[kTiles][4];
#pragma unroll
        for (int m = 0; m < kTiles; ++m) {
            a[m][0] = device::pack<T>(p[m][n][0], p[m][n][1]);
            a[m][1] = device::pack<T>(p[m][n][2], p[m][n][3]);
            a[m][2] = device::pack<T>(p[m][n + 1][0], p[m][n + 1][1]);
            a[m][3] = device::pack<T>(p[m][n + 1][2], p[m][n + 1][3]);
        }
#pragma unroll
        for (int d = 0; d < kSize; d += 16) {
            uint32_t b[4];
            device::load_transposed(b, v_row + n * 8 * kStride + d);
#pragma unroll
            for (int m = 0; m < kTiles; ++m) {
                device::multiply_add<T>(out[m][d / 8], a[m], b[0], b[1]);
                device::multiply_add<T>(out[m][d / 8 + 1], a[m], b[2], b[3]);
            }
        }
    }
}

// Two neighbouring elements of a row of y, those that there are.
template <class T>
__device__ void store_pair(T* row, int col, int cols, bool in_pairs, float first, float second) {
    if (col >= cols) return;
    if (in_pairs) {
        *reinterpret_cast<uint32_t*>(row + col) = device::pack<T>(first, second);
        return;
    }
    row[col] = device::from_float<T>(first);
    if (col + 1 < cols) row[col + 1] = device::from_float<T>(second);
}

// kPlain: no mask, no softcap, and a positive scale.
template <class T, int kSize, bool kPlain>
__global__ void __launch_bounds__(PrefillShape<T, kSize, kPlain>::kThreads)
    prefill_kernel(Attention const a, int tiles_per_head) {
    using S = PrefillShape<T, kSize, kPlain>;
    extern __shared__ __align__(16) unsigned char shared[];
    T* const q = reinterpret_cast<T*>(shared);
    T* const k = q + S::kRows * S::kStride;
    T* const v = k + S::kKeys * S::kStride;

    int64_t const head_index = blockIdx.x / tiles_per_head;
    // Of causal tiles, those with the most keys go first.
    int const tile = tiles_per_head - 1 - static_cast<int>(blockIdx.x % tiles_per_head);
    int64_t const batch = head_index / a.heads;
    int const head = static_cast<int>(head_index % a.heads);
    int const kv_head = head / (a.heads / a.kv_heads);
    T const* const keys = head_of<T>(a.k, batch, kv_head);
    T const* const values = head_of<T>(a.v, batch, kv_head);
    int const first_row = tile * S::kRows;
    int const warp_row = threadIdx.x / 32 * 16 * S::kTiles;  // within the tile
    int const lane = threadIdx.x % 32;

    KeyCount const count = keys_of_batch(a, batch);
    KeyRange seen[S::kTiles][2];
    MaskRows masks[S::kTiles];
#pragma unroll
    for (int m = 0; m < S::kTiles; ++m)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            int const row = first_row + warp_row + 16 * m + 8 * r + lane / 4;
            seen[m][r] = keys_of_row(a, count, row);
            masks[m].template set<T>(r, a, count, batch, head, row);
        }
    int const warp_first = first_row + warp_row;
    KeyRange const all_see = keys_of_all(a, count, warp_first, warp_first + 16 * S::kTiles - 1);
    auto const [first_key, end] =
        keys_of_any(a, count, first_row, min(first_row + S::kRows, a.queries) - 1);
    int const begin = first_key / S::kKeys * S::kKeys;

    float out[S::kTiles][kSize / 8][4] = {};
    RunningSoftmax softmax[S::kTiles];
    float const log2_scale = kPlain ? a.scale * kLog2E : kLog2E;

    copy_rows<S::kRows, kSize, S::kThreads>(q, head_of<T>(a.q, batch, head), a.q.row, first_row,
                                            a.queries, a.head_size, a.in_vectors, threadIdx.x);
    copy_rows<S::kKeys, kSize, S::kThreads>(k, keys, a.k.row, begin, a.keys, a.head_size,
                                            a.in_vectors, threadIdx.x);
    device::commit_copies();
    for (int start = begin; start < end; start += S::kKeys) {
        device::wait_for_copies<0>();
        __syncthreads();  // keys are there, and nobody reads the last values any more
        copy_rows<S::kKeys, kSize, S::kThreads>(v, values, a.v.row, start, a.keys, a.value_size,
                                                a.in_vectors, threadIdx.x);
        device::commit_copies();

        float s[S::kTiles][S::kKeys / 8][4] = {};
        multiply_keys<T, kSize>(s, q + warp_row * S::kStride, k, lane);

        device::wait_for_copies<0>();
        __syncthreads();  // values are there, and nobody reads these keys any more
        if (start + S::kKeys < end)
            copy_rows<S::kKeys, kSize, S::kThreads>(k, keys, a.k.row, start + S::kKeys, a.keys,
                                                    a.head_size, a.in_vectors, threadIdx.x);
        device::commit_copies();

        int const key = start + lane % 4 * 2;  // of this lane's first column
#pragma unroll
        for (int m = 0; m < S::kTiles; ++m) {
            if constexpr (!kPlain) {
                scale_scores(s[m], a);
                add_mask<T, false>(s[m], a, masks[m], key);
                add_slopes(s[m], a, masks[m], key);
            }
            if (start < all_see.begin || start + S::kKeys > all_see.end)
                hide_scores(s[m], seen[m], key);
            scale_rows(out[m], softmax[m].template update<kPlain>(s[m], log2_scale));
        }
        multiply_values<T, kSize>(out, s, v, lane);
    }
    device::wait_for_copies<0>();

    T* const y = head_of<T>(a.y, batch, head);
#pragma unroll
    for (int m = 0; m < S::kTiles; ++m) {
        softmax[m].finish();
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            int const row = first_row + warp_row + 16 * m + 8 * r + lane / 4;
            if (row >= a.queries) continue;
            RowScale const scale = row_scale(softmax[m].sum[r], a.nan_guard);
#pragma unroll
            for (int i = 0; i < kSize / 8; ++i)
                store_pair(y + row * a.y.row, 8 * i + lane % 4 * 2, a.value_size, a.y_in_pairs,
                           scale(out[m][i][2 * r]), scale(out[m][i][2 * r + 1]));
        }
    }
}

// ---- launchers

template <class T, int kSize, bool kPlain>
cudaError_t launch_prefill(Attention const& a, cudaStream_t stream) {
    using S = PrefillShape<T, kSize, kPlain>;
    int const tiles = (a.queries + S::kRows - 1) / S::kRows;
    int64_t const blocks = a.batch * a.heads * tiles;
    if (blocks > INT32_MAX) return cudaErrorInvalidValue;
    device::Grid const grid{blocks, dim3(S::kThreads), 1, S::kSharedBytes};
    return device::launch(prefill_kernel<T, kSize, kPlain>, device::kInOrder, grid, stream, a,
                          tiles);
}

template <class T, int kSize>
cudaError_t launch_prefill(Attention const& a, cudaStream_t stream) {
    return only_scales(a) ? launch_prefill<T, kSize, true>(a, stream)
                          : launch_prefill<T, kSize, false>(a, stream);
}

}  // namespace opfuse
