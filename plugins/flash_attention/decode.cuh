// y = softmax(scale q k^T + mask) v for few queries against many keys, on mma.sync.
//
// The queries of all heads that share a key/value head are rows of one tile, so keys and values are
// read once for a whole group.  Each warp streams keys of its own through shared memory and needs
// no other warp before the end.  Where tiles are few, each tile's keys are split over several
// blocks, which leave partial results for a second kernel.
#pragma once
#include <algorithm>

#include "prefill.cuh"

namespace opfuse {

// ---- kernels

// kStages: steps of a warp that are under way at once.
template <class T, int kSize, int kStages_>
struct DecodeShape {
    static constexpr int kWarps = kSize <= 128 ? 4 : 2;
    static constexpr int kThreads = 32 * kWarps;
    static constexpr int kRows = kDecodeQueries;
    static constexpr int kKeys = 16;  // of one warp's step
    static constexpr int kStages = kStages_;
    static constexpr int kStride = kSize + 8;
    static constexpr int kStage = 2 * kKeys * kStride;  // elements: keys, then values
    static constexpr int kSharedBytes = (kRows * kStride + kWarps * kStages * kStage) * sizeof(T);
    static_assert(kWarps * kRows * (kSize + 2) * sizeof(float) <=
                  kWarps * kStages * kStage * sizeof(T));  // the warps' results take their place
};

// What a tile's keys are split into.  Partial results lie in the workspace as
// [kv head, split, row, kSize] sums and [kv head, split, row, 2] maxima and sums of weights, with
// the rows of all queries of a group of heads.
struct KeySplits {
    int begin = 0;  // keys before are not seen
    int count = 1;
    int keys = 0;  // of one split; a multiple of what a block takes in one step
    float* results = nullptr;
    float* statistics = nullptr;
    int arrivals = -1;  // the set that counts the splits whose results are there; -1: none does
};

__device__ inline int64_t first_result(int kv_index, int split, KeySplits const& splits, int rows) {
    return (static_cast<int64_t>(kv_index) * splits.count + split) * rows;
}

// Which query of which head a row of a group is; rows past the end are the last.
struct PackedRow {
    int head, query;

    __device__ PackedRow(Attention const& a, int kv_head, int row) {
        int const group = a.heads / a.kv_heads;
        int const inside = min(row, group * a.queries - 1);
        head = kv_head * group + inside / a.queries;
        query = inside % a.queries;
    }
    template <class T>
    __device__ T* in(Heads const& heads, int64_t batch) const {
        return head_of<T>(heads, batch, head) + query * heads.row;
    }
};

// Maximum and sum of a row over `count` partial results, `stride` floats apart.
__device__ inline float2 combined(float const* statistics, int count, int stride,
                                  float log2_scale) {
    float top = -INFINITY, sum = 0.f;
    for (int i = 0; i < count; ++i) top = fmaxf(top, statistics[i * stride]);
    for (int i = 0; i < count; ++i)
        sum += statistics[i * stride + 1] * share(statistics[i * stride], top, log2_scale);
    return {top, sum};
}

template <class T, int kSize, int kStages, bool kPlain>
__global__ void __launch_bounds__(DecodeShape<T, kSize, kStages>::kThreads)
    decode_kernel(Attention const a, int tiles, KeySplits const splits) {
    using S = DecodeShape<T, kSize, kStages>;
    extern __shared__ __align__(16) unsigned char shared[];
    T* const q = reinterpret_cast<T*>(shared);
    int const warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    T* const stages = q + S::kRows * S::kStride;
    T* const own = stages + warp * S::kStages * S::kStage;

    int const index = blockIdx.x, kv_index = index / (tiles * splits.count);
    int const tile = index % tiles;  // neighbours read the same keys
    int const split = index / tiles % splits.count;
    int const batch = kv_index / a.kv_heads, kv_head = kv_index % a.kv_heads;
    int const group_rows = a.heads / a.kv_heads * a.queries;
    int const first_row = tile * S::kRows, rows = min(S::kRows, group_rows - first_row);
    T const* const keys = head_of<T>(a.k, batch, kv_head);
    T const* const values = head_of<T>(a.v, batch, kv_head);
    int64_t const next = splits.begin + static_cast<int64_t>(split + 1) * splits.keys;
    device::wait_in_turn();
    KeyCount const count = keys_of_batch(a, batch);
    int const end = static_cast<int>(min(static_cast<int64_t>(count.there(a)), next));

    auto const fetch = [&](int start, int step) {
        T* const stage = own + step % S::kStages * S::kStage;
        if (start < end) {
            copy_rows<S::kKeys, kSize, 32>(stage, keys, a.k.row, start, end, a.head_size,
                                           a.in_vectors, lane);
            copy_rows<S::kKeys, kSize, 32>(stage + S::kKeys * S::kStride, values, a.v.row, start,
                                           end, a.value_size, a.in_vectors, lane);
        }
        device::commit_copies();
    };
    constexpr int kStep = S::kKeys * S::kWarps;
    int const begin = splits.begin + split * splits.keys + warp * S::kKeys;
#pragma unroll
    for (int step = 0; step + 1 < S::kStages; ++step) fetch(begin + step * kStep, step);

    for (int i = threadIdx.x; i < S::kRows * kSize; i += S::kThreads) {
        int const row = i / kSize, col = i % kSize;
        bool const valid = row < rows && col < a.head_size;
        q[row * S::kStride + col] =
            valid ? PackedRow(a, kv_head, first_row + row).in<T>(a.q, batch)[col]
                  : device::from_float<T>(0.f);
    }
    __syncthreads();

    KeyRange seen[2];
    MaskRows masks;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        PackedRow const row(a, kv_head, first_row + 8 * r + lane / 4);
        seen[r] = keys_of_row(a, count, row.query);
        seen[r].end = min(seen[r].end, end);
        masks.set<T>(r, a, count, batch, row.head, row.query);
    }
    KeyRange all_see = keys_of_all(a, count, 0, a.queries - 1);
    all_see.end = min(all_see.end, end);
    float out[1][kSize / 8][4] = {};
    RunningSoftmax softmax;
    float const log2_scale = kPlain ? a.scale * kLog2E : kLog2E;
    int step = 0;
    for (int start = begin; start < end; start += kStep, ++step) {
        device::wait_for_copies<S::kStages - 2>();
        __syncwarp();  // this step is there, and the stage of the last one is free
        fetch(start + (S::kStages - 1) * kStep, step + S::kStages - 1);
        T const* const stage = own + step % S::kStages * S::kStage;
        float s[1][S::kKeys / 8][4] = {};
        multiply_keys<T, kSize>(s, q, stage, lane);
        int const key = start + lane % 4 * 2;
        if constexpr (!kPlain) {
            scale_scores(s[0], a);
            add_mask<T, false>(s[0], a, masks, key);
            add_slopes(s[0], a, masks, key);
        }
        if (start < all_see.begin || start + S::kKeys > all_see.end) hide_scores(s[0], seen, key);
        scale_rows(out[0], softmax.template update<kPlain>(s[0], log2_scale));
        multiply_values<T, kSize>(out, s, stage + S::kKeys * S::kStride, lane);
    }
    device::wait_for_copies<0>();
    softmax.finish();
    __syncthreads();  // nobody reads the stages any more

    float* const results = reinterpret_cast<float*>(stages);           // [warp, row, kSize]
    float* const statistics = results + S::kWarps * S::kRows * kSize;  // [warp, row, 2]
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        int const row = warp * S::kRows + 8 * r + lane / 4;
#pragma unroll
        for (int i = 0; i < kSize / 8; ++i)
            *reinterpret_cast<float2*>(results + row * kSize + 8 * i + lane % 4 * 2) = {
                out[0][i][2 * r], out[0][i][2 * r + 1]};
        if (lane % 4 == 0)
            *reinterpret_cast<float2*>(statistics + row * 2) = {softmax.max[r], softmax.sum[r]};
    }
    __syncthreads();

    int64_t const part = first_result(kv_index, split, splits, group_rows) + first_row;
    for (int i = threadIdx.x; i < rows * kSize; i += S::kThreads) {
        int const row = i / kSize, col = i % kSize;
        float2 const total = combined(statistics + row * 2, S::kWarps, S::kRows * 2, log2_scale);
        float result = 0.f;
        for (int w = 0; w < S::kWarps; ++w)
            result += results[w * S::kRows * kSize + i] *
                      share(statistics[(w * S::kRows + row) * 2], total.x, log2_scale);
        if (splits.count > 1) {
            splits.results[part * kSize + i] = result;
            if (col < 2) splits.statistics[(part + row) * 2 + col] = col == 0 ? total.x : total.y;
        } else if (col < a.value_size) {
            PackedRow(a, kv_head, first_row + row).in<T>(a.y, batch)[col] =
                device::from_float<T>(normalised(result, total.y, a.nan_guard));
        }
    }
}

// Of a row: the lanes that add up its splits' results, and the columns that each of them has.
template <int kSize>
inline constexpr int kCombineLanes = kSize / 4 < 32 ? kSize / 4 : 32;

// y = the splits' results of a row, each scaled by its share of the weights.
template <class T, int kSize, bool kPlain>
__device__ void combine_row(Attention const& a, KeySplits const& splits, int kv_index, int row,
                            int lane) {
    constexpr int kLanes = kCombineLanes<kSize>, kColumns = kSize / kLanes, kAtOnce = 64 / kColumns;
    using Columns = device::Vec<float, kColumns>;
    int const rows = a.heads / a.kv_heads * a.queries;
    int64_t const first = first_result(kv_index, 0, splits, rows) + row;
    float const log2_scale = kPlain ? a.scale * kLog2E : kLog2E;
    auto const* const statistics = reinterpret_cast<float2 const*>(splits.statistics) + first;
    auto const part = [&](int i) {
        return device::load<kColumns>(splits.results + (first + i * rows) * kSize, lane);
    };
    Columns early[kAtOnce];  // on their way while the shares are worked out
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i)
        if (i < splits.count) early[i] = part(i);
    float top = -INFINITY, sum = 0.f;
    for (int i = lane; i < splits.count; i += kLanes) top = fmaxf(top, statistics[i * rows].x);
#pragma unroll
    for (int i = 1; i < kLanes; i *= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, i));
    float result[kColumns] = {};
    auto const add = [&](Columns const& own, float factor) {
#pragma unroll
        for (int e = 0; e < kColumns; ++e) result[e] = fmaf(own.at[e], factor, result[e]);
    };
    for (int begin = 0; begin < splits.count; begin += kLanes) {
        float factor = 0.f;
        if (begin + lane < splits.count) {
            float2 const own = statistics[(begin + lane) * rows];
            factor = share(own.x, top, log2_scale);
            sum += own.y * factor;
        }
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
            float const of_part = __shfl_sync(0xffffffffu, factor, i, kLanes);
            if (begin == 0 && i < splits.count) add(early[i], of_part);
        }
#pragma unroll 8
        for (int i = begin == 0 ? kAtOnce : 0; i < min(kLanes, splits.count - begin); ++i)
            add(part(begin + i), __shfl_sync(0xffffffffu, factor, i, kLanes));
    }
#pragma unroll
    for (int i = 1; i < kLanes; i *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, i);
    T* const y = PackedRow(a, kv_index % a.kv_heads, row).in<T>(a.y, kv_index / a.kv_heads);
#pragma unroll
    for (int e = 0; e < kColumns; ++e)
        if (lane * kColumns + e < a.value_size)
            y[lane * kColumns + e] = device::from_float<T>(normalised(result[e], sum, a.nan_guard));
}

// One block a row.
template <class T, int kSize, bool kPlain>
__global__ void __launch_bounds__(32) combine_kernel(Attention const a, KeySplits const splits) {
    int const rows = a.heads / a.kv_heads * a.queries;
    device::wait_in_turn();
    combine_row<T, kSize, kPlain>(a, splits, blockIdx.x / rows, blockIdx.x % rows,
                                  threadIdx.x % kCombineLanes<kSize>);
}

// ---- launchers

// What keys are split by: the first is a multiple of `grain`, a block takes `step` in one, and
// fewer than `least` are not worth a split.
struct SplitUnits {
    int grain, step, least = kMinSplitKeys;
};

// As many splits as the device runs blocks at once, and room for their results in the workspace.
inline KeySplits split_keys(Attention const& a, int size, int64_t tiles, int slots,
                            SplitUnits const& units, void* workspace) {
    KeySplits splits;
    int const step = units.step;
    if (!a.lengths.data)  // which only the device knows
        splits.begin = static_cast<int>(
            std::max<int64_t>(static_cast<int64_t>(a.keys) - a.queries - a.behind, 0));
    splits.begin -= splits.begin % units.grain;
    int const keys = a.keys - splits.begin;
    int64_t const rows = a.batch * a.heads * a.queries;
    int64_t const room = std::min<int64_t>(kMaxParts * kDecodeQueries / rows, kMaxParts);
    int64_t const wanted = std::min({slots / tiles, room, int64_t{keys / units.least}});
    int64_t const steps = (keys + step - 1) / step;
    splits.keys = static_cast<int>(steps) * step;
    if (!workspace || wanted < 2) return splits;
    splits.keys = static_cast<int>((steps + wanted - 1) / wanted) * step;
    splits.count = (keys + splits.keys - 1) / splits.keys;
    splits.results = static_cast<float*>(workspace);
    splits.statistics = splits.results + rows * splits.count * size;
    return splits;
}

// Adds up the splits' results, if there are several.
template <class T, int kSize, bool kPlain>
cudaError_t launch_combine(Attention const& a, KeySplits const& splits,
                           device::Machine const& machine, cudaStream_t stream) {
    if (splits.count == 1) return cudaSuccess;
    device::Grid const rows{a.batch * a.heads * a.queries, dim3(32)};
    return device::launch(combine_kernel<T, kSize, kPlain>, machine, rows, stream, a, splits);
}

template <class T, int kSize, int kStages, bool kPlain>
cudaError_t launch_decode(Attention const& a, void* workspace, cudaStream_t stream) {
    using S = DecodeShape<T, kSize, kStages>;
    auto const kernel = decode_kernel<T, kSize, kStages, kPlain>;
    device::Machine machine;
    int per_processor = 0;
    cudaError_t status = device::current_machine(machine);
    if (!status)
        status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      S::kSharedBytes);
    if (!status)
        status = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_processor, kernel, S::kThreads,
                                                               S::kSharedBytes);
    if (status) return status;
    int const group_rows = a.heads / a.kv_heads * a.queries;
    int const tiles = (group_rows + S::kRows - 1) / S::kRows;
    int64_t const all_tiles = a.batch * a.kv_heads * tiles;
    SplitUnits const units{2, S::kKeys * S::kWarps};  // a mask may be read in pairs
    auto const splits =
        split_keys(a, kSize, all_tiles, machine.multiprocessors * per_processor, units, workspace);
    int64_t const blocks = all_tiles * splits.count;
    if (blocks > INT32_MAX || a.batch * a.heads * a.queries > INT32_MAX)
        return cudaErrorInvalidValue;
    device::Grid const grid{blocks, dim3(S::kThreads), 1, S::kSharedBytes};
    status = device::launch(kernel, machine, grid, stream, a, tiles, splits);
    return status ? status : launch_combine<T, kSize, kPlain>(a, splits, machine, stream);
}

template <class T, int kSize, int kStages>
cudaError_t launch_decode(Attention const& a, void* workspace, cudaStream_t stream) {
    return only_scales(a) ? launch_decode<T, kSize, kStages, true>(a, workspace, stream)
                          : launch_decode<T, kSize, kStages, false>(a, workspace, stream);
}

// More stages where shared memory holds them, as on sm_80 and sm_90; sm_86, sm_89, and sm_120 have
// 99 KB.
template <class T, int kSize>
cudaError_t launch_decode(Attention const& a, void* workspace, cudaStream_t stream) {
    constexpr int kMany = kSize <= 64 ? 4 : 3, kFew = 2;
    device::Machine machine;
    if (cudaError_t const status = device::current_machine(machine)) return status;
    return DecodeShape<T, kSize, kMany>::kSharedBytes <= machine.shared_bytes
               ? launch_decode<T, kSize, kMany>(a, workspace, stream)
               : launch_decode<T, kSize, kFew>(a, workspace, stream);
}

}  // namespace opfuse
