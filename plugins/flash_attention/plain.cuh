// y = softmax(scale q k^T + mask) v in fp32 on ordinary units: fp32 tensors, and any head size.
//
// One warp has one query and kColumns columns of its result; its lanes have a key each while scores
// are computed, and columns each while values are added up.
#pragma once
#include "../device/reduce.cuh"
#include "softmax.cuh"

namespace opfuse {

// ---- kernels

inline constexpr int kPlainWarps = 4;
inline constexpr int kPlainColumns = 256;

template <class T>
__device__ float plain_score(Attention const& a, T const* q, T const* key, int64_t mask,
                             float slope, int position, int index) {
    float score = 0.f;
    for (int d = 0; d < a.head_size; ++d)
        score = fmaf(device::to_float(q[d]), device::to_float(key[d]), score);
    score *= a.scale;
    if (a.softcap > 0.f) score = a.softcap * tanhf(score / a.softcap);
    if (a.mask.data) score += mask_at<T>(a.mask, mask, index);
    return a.slopes.data ? score - slope * distance(position, index) : score;
}

template <class T>
__global__ void __launch_bounds__(32 * kPlainWarps) plain_kernel(Attention const a, int64_t rows) {
    constexpr int kOwn = kPlainColumns / 32;
    int64_t const index = static_cast<int64_t>(blockIdx.x) * kPlainWarps + threadIdx.x / 32;
    if (index >= rows) return;  // a whole warp
    int const lane = threadIdx.x % 32;
    int const query = static_cast<int>(index % a.queries);
    int64_t const head_index = index / a.queries;
    int64_t const batch = head_index / a.heads;
    int const head = static_cast<int>(head_index % a.heads);
    int const kv_head = head / (a.heads / a.kv_heads);
    KeyCount const count = keys_of_batch(a, batch);
    KeyRange const seen = keys_of_row(a, count, query);
    int64_t const mask = mask_start(a, batch, head, query);
    float const slope = slope_of<T>(a, head);
    int const position = position_of(a, count, query);
    T const* const q = head_of<T>(a.q, batch, head) + query * a.q.row;
    T const* const keys = head_of<T>(a.k, batch, kv_head);
    int const first_col = blockIdx.y * kPlainColumns + lane;
    T const* const values = head_of<T>(a.v, batch, kv_head);

    float out[kOwn] = {};
    float top = -INFINITY, sum = 0.f;
    for (int start = seen.begin; start < seen.end; start += 32) {
        int const key = start + lane;
        float const score =
            key < seen.end ? plain_score(a, q, keys + key * a.k.row, mask, slope, position, key)
                           : -INFINITY;
        float const new_top = fmaxf(top, device::warp_max(score));
        float const origin = new_top == -INFINITY ? 0.f : new_top;
        float const correction = expf(top - origin);
        float const weight = expf(score - origin);
        top = new_top;
        sum = sum * correction + weight;
#pragma unroll
        for (int i = 0; i < kOwn; ++i) out[i] *= correction;
        int const count = min(32, seen.end - start);
        for (int j = 0; j < count; ++j) {
            float const share = __shfl_sync(0xffffffffu, weight, j);
            T const* const value = values + (start + j) * a.v.row;
#pragma unroll
            for (int i = 0; i < kOwn; ++i)
                if (first_col + 32 * i < a.value_size)
                    out[i] = fmaf(share, device::to_float(value[first_col + 32 * i]), out[i]);
        }
    }
    sum = device::warp_sum(sum);
    T* const y = head_of<T>(a.y, batch, head) + query * a.y.row;
#pragma unroll
    for (int i = 0; i < kOwn; ++i)
        if (first_col + 32 * i < a.value_size)
            y[first_col + 32 * i] = device::from_float<T>(normalised(out[i], sum, a.nan_guard));
}

// ---- launchers

template <class T>
cudaError_t plain_attention(Attention const& a, cudaStream_t stream) {
    int64_t const rows = a.batch * a.heads * a.queries;
    int64_t const blocks = (rows + kPlainWarps - 1) / kPlainWarps;
    int64_t const columns = (a.value_size + kPlainColumns - 1) / kPlainColumns;
    if (blocks > INT32_MAX || columns > UINT16_MAX) return cudaErrorInvalidValue;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(columns));
    config.blockDim = dim3(32 * kPlainWarps);
    config.stream = stream;
    return cudaLaunchKernelEx(&config, plain_kernel<T>, a, rows);
}

}  // namespace opfuse
