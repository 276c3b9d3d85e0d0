// Packed q, k, v -> heads: bias, RMSNorm of each head of q and k, their rotation, transpose.
// Everything between one read of qkv and one write of q, k, v is in fp32.  Pure CUDA.
#pragma once
#include <cuda_runtime.h>

#include <limits>

#include "../device/launch.cuh"
#include "../device/rotary.cuh"
#include "launch.h"

namespace opfuse {

// ---- kernels

// The heads that one thread works on, all of q, all of k, or all of v, and where they go.
template <class T>
struct HeadGroup {
    T* out;       // [batch, of_its_kind, seq, size]
    int in_qkv;   // its first head among those of qkv
    int first;    // the same among its kind
    int of_kind;  // how many heads its kind has
    device::Parameter gamma;
    bool turns;
};

// Group `index` of q's groups of kHeads, then k's, then v's.
template <int kHeads, class T>
__device__ HeadGroup<T> head_group(int index, T* q, T* k, T* v, QkNormRopeParameters const& given,
                                   QkNormRopeShape const& shape) {
    int const of_q = (shape.heads + kHeads - 1) / kHeads;
    int const of_k = (shape.kv_heads + kHeads - 1) / kHeads;
    if (index < of_q) return {q, index * kHeads, index * kHeads, shape.heads, given.q_gamma, true};
    index -= of_q;
    if (index < of_k) {
        int const first = index * kHeads;
        return {k, shape.heads + first, first, shape.kv_heads, given.k_gamma, true};
    }
    int const first = (index - of_k) * kHeads;
    return {v, shape.heads + shape.kv_heads + first, first, shape.kv_heads, {}, false};
}

// Which token of which sequence this thread works on, and what it reads for it.
struct Token {
    int64_t batch, at;
    int64_t cos_row, sin_row;
    bool valid;

    __device__ Token(int64_t number, QkNormRopeShape const& shape) {
        auto const [whole, rest] = device::divide(number, shape.seq);
        batch = whole;
        at = rest;
        cos_row = batch * shape.cos_batch + at * shape.cos_seq;
        sin_row = batch * shape.sin_batch + at * shape.sin_seq;
        valid = batch < shape.batch;
    }
};

// Head `head` of its kind, of this token.
template <class T>
__device__ T* row_of(HeadGroup<T> const& group, int head, Token const& token,
                     QkNormRopeShape const& shape) {
    int64_t const row = (token.batch * group.of_kind + head) * shape.seq + token.at;
    return group.out + row * shape.size;
}

template <class T>
__device__ T const* row_of(T const* qkv, int head, Token const& token,
                           QkNormRopeShape const& shape) {
    int64_t const token_row = (token.batch * shape.seq + token.at) * shape.all_heads();
    return qkv + (token_row + head) * shape.size;
}

inline constexpr int kHeadThreads = 128;  // of a block
inline constexpr int kMaxHeadPairs = 32;  // pairs of vectors of a head that one warp holds

// The block loads [first, first + count) of `from`.
template <class T>
__device__ void gather(float* to, device::Parameter from, int64_t first, int count) {
    for (int i = threadIdx.y * blockDim.x + threadIdx.x; i < count; i += kHeadThreads)
        to[i] = device::load_parameter<T, 1>(from, first + i).at[0];
}

// blockDim.x threads hold a head, each a pair of vectors, and do so for kHeads heads of a token.
// Blocks take one group of heads of some tokens after the other, and then the next tokens.
// kLarge: qkv and what is made of it are, together (device::kLargeBytes).
template <class T, bool kInterleaved, int kVec, int kHeads, bool kLarge>
__global__ void __launch_bounds__(kHeadThreads, 4)
    qk_norm_rope_kernel(T* q, T* k, T* v, T const* qkv, QkNormRopeParameters given,
                        QkNormRopeShape shape, int groups) {
    using device::load_pair;
    using device::Pair;
    device::let_next_start();
    auto const group = head_group<kHeads>(blockIdx.x % groups, q, k, v, given, shape);
    Token const token(static_cast<int64_t>(blockIdx.x / groups) * blockDim.y + threadIdx.y, shape);
    int const pair = threadIdx.x, turning = shape.turning / kVec;
    auto const place = device::place_of<kInterleaved>(pair, turning);
    bool const holds = token.valid && place.b < shape.size / kVec;
    int const heads = holds ? min(kHeads, group.of_kind - group.first) : 0;
    T const* packed = row_of(qkv, group.in_qkv, token, shape);
    if (device::tuning::kPrefetch && kHeads == 1 && holds) {
        if (place.a % 2 == 0) device::prefetch(packed + place.a * kVec);
        if (place.b % 2 == 0) device::prefetch(packed + place.b * kVec);
    }
    device::wait_for_previous();
    device::Vec<T, kVec> a[kHeads], b[kHeads];
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
        if (h >= heads) break;
        a[h] = device::load_large<kVec, kLarge>(packed + h * shape.size, place.a);
        b[h] = device::load_large<kVec, kLarge>(packed + h * shape.size, place.b);
    }
    Pair<kVec> cos, sin;
    bool const turns = holds && group.turns && pair < turning / 2;
    if (turns) {
        cos = load_pair<T, kVec>(given.cos, token.cos_row * shape.turning, place);
        sin = load_pair<T, kVec>(given.sin, token.sin_row * shape.turning, place);
    }
    // The same for all tokens of the block, which share its way here.
    constexpr int kMaxSize = kMaxHeadPairs * 2 * kVec;
    __shared__ alignas(16) float bias[kHeads * kMaxSize], gamma[kMaxSize];
    bool const biased = given.bias.data, normed = group.gamma.data;
    int const width = min(kHeads, group.of_kind - group.first) * shape.size;
    if (biased) gather<T>(bias, given.bias, int64_t{group.in_qkv} * shape.size, width);
    if (normed) gather<T>(gamma, group.gamma, 0, shape.size);
    if (biased || normed) __syncthreads();
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
        Pair<kVec> x{};
        if (h < heads) {
            x = {device::widen(a[h]), device::widen(b[h])};
            if (biased) device::add(x, load_pair<T, kVec>({bias, true}, h * shape.size, place));
        }
        if (normed) {  // the same for the whole block
            float const squares = device::lane_sum(device::squares(x));
            float const factor = rsqrtf(squares / shape.size + given.epsilon);
            if (holds) device::scale(x, factor, load_pair<T, kVec>({gamma, true}, 0, place));
        }
        if (h >= heads) continue;
        if (turns) device::turn<kInterleaved>(x, cos, sin);
        T* out = row_of(group, group.first + h, token, shape);
        device::store_large<kLarge>(out, place.a, device::narrow<T>(x.a));
        device::store_large<kLarge>(out, place.b, device::narrow<T>(x.b));
    }
}

// The same for any size and alignment: a warp holds nothing of its head, and reads it again.
template <class T, bool kInterleaved>
__global__ void __launch_bounds__(kHeadThreads)
    qk_norm_rope_any_kernel(T* q, T* k, T* v, T const* qkv, QkNormRopeParameters given,
                            QkNormRopeShape shape, int groups) {
    device::let_next_start();
    device::wait_for_previous();
    auto const group = head_group<1>(blockIdx.x % groups, q, k, v, given, shape);
    Token const token(static_cast<int64_t>(blockIdx.x / groups) * blockDim.y + threadIdx.y, shape);
    T const* packed = row_of(qkv, group.in_qkv, token, shape);
    auto const biased = [&](int i) {
        float const x = device::to_float(packed[i]);
        if (!given.bias.data) return x;
        int64_t const at = static_cast<int64_t>(group.in_qkv) * shape.size + i;
        return x + device::load_parameter<T, 1>(given.bias, at).at[0];
    };
    float scale = 1.f;
    if (group.gamma.data) {  // the same for the whole block
        float squares = 0.f;
        for (int i = threadIdx.x; token.valid && i < shape.size; i += blockDim.x)
            squares += biased(i) * biased(i);
        scale = rsqrtf(device::lane_sum(squares) / shape.size + given.epsilon);
    }
    auto const normed = [&](int i) {
        if (!group.gamma.data) return biased(i);
        return biased(i) * scale * device::load_parameter<T, 1>(group.gamma, i).at[0];
    };
    if (!token.valid) return;
    T* out = row_of(group, group.first, token, shape);
    for (int pair = threadIdx.x; pair < (shape.size + 1) / 2; pair += blockDim.x) {
        auto const place = device::place_of<kInterleaved>(pair, shape.turning);
        bool const has_b = place.b < shape.size;
        device::Pair<1> x{{normed(place.a)}, {has_b ? normed(place.b) : 0.f}};
        if (group.turns && pair < shape.turning / 2)
            device::turn<kInterleaved>(
                x, device::load_pair<T, 1>(given.cos, token.cos_row * shape.turning, place),
                device::load_pair<T, 1>(given.sin, token.sin_row * shape.turning, place));
        out[place.a] = device::from_float<T>(x.a.at[0]);
        if (has_b) out[place.b] = device::from_float<T>(x.b.at[0]);
    }
}

// ---- launchers

template <class T>
using QkNormRopeKernel = void (*)(T*, T*, T*, T const*, QkNormRopeParameters, QkNormRopeShape, int);

// `lanes` threads a head, a power of two up to 32, and `together` heads a thread.
template <class T>
cudaError_t launch_qk_norm_rope(QkNormRopeKernel<T> kernel, int lanes, int together, T* q, T* k,
                                T* v, T const* qkv, QkNormRopeParameters const& parameters,
                                QkNormRopeShape const& shape, cudaStream_t stream) {
    int const tokens_per_block = kHeadThreads / lanes;
    int64_t const tiles = (shape.batch * shape.seq + tokens_per_block - 1) / tokens_per_block;
    int const groups =
        (shape.heads + together - 1) / together + 2 * ((shape.kv_heads + together - 1) / together);
    if (tiles * groups > std::numeric_limits<int32_t>::max()) return cudaErrorInvalidValue;
    device::Machine machine;
    if (cudaError_t const status = device::current_machine(machine); status != cudaSuccess)
        return status;
    // Without `most_share`, by which 64 tokens take 1.95 and not 2.16 us alone: behind it the
    // attention, or the copy of its cache, waits for multiprocessors to be split between L1 and
    // shared memory anew.  A Llama's step with 2048 cached tokens takes 300 us so, not 294.
    device::Grid const grid{.blocks = tiles * groups, .threads = dim3(lanes, tokens_per_block)};
    return device::launch(kernel, machine, grid, stream, q, k, v, qkv, parameters, shape, groups);
}

template <class T, bool kInterleaved>
cudaError_t launch_qk_norm_rope(T* q, T* k, T* v, T const* qkv,
                                QkNormRopeParameters const& parameters,
                                QkNormRopeShape const& shape, cudaStream_t stream) {
    constexpr int kVec = device::kVecBytes / sizeof(T);
    // Heads that share one read of cos and sin: 1, 2, 4, 8 took 175, 156, 145, 146 us (16384 tokens
    // of 48 heads of 128, normed, fp16 on H100).  Few threads do better with a head each.
    constexpr int kHeads = 4;
    constexpr int64_t kFewThreads = 1 << 18;
    auto const launch = [&](QkNormRopeKernel<T> kernel, int lanes, int together) {
        return launch_qk_norm_rope(kernel, lanes, together, q, k, v, qkv, parameters, shape,
                                   stream);
    };
    auto const& [cos, sin, q_gamma, k_gamma, bias, epsilon] = parameters;
    int const pairs = shape.size / (2 * kVec);
    bool const vectors =
        device::aligned(q, k, v, qkv, cos.data, sin.data, q_gamma.data, k_gamma.data, bias.data) &&
        shape.size % (2 * kVec) == 0 && shape.turning % (2 * kVec) == 0;
    if (!vectors || pairs > kMaxHeadPairs)
        return launch(qk_norm_rope_any_kernel<T, kInterleaved>, 32, 1);
    int lanes = 1;
    while (lanes < pairs) lanes *= 2;
    int64_t const rows = shape.batch * shape.seq * shape.all_heads();
    if (rows * lanes < kFewThreads)
        return launch(qk_norm_rope_kernel<T, kInterleaved, kVec, 1, false>, lanes, 1);
    if (2 * rows * shape.size * int64_t{sizeof(T)} < device::kLargeBytes)
        return launch(qk_norm_rope_kernel<T, kInterleaved, kVec, kHeads, false>, lanes, kHeads);
    return launch(qk_norm_rope_kernel<T, kInterleaved, kVec, kHeads, true>, lanes, kHeads);
}

template <class T>
cudaError_t qk_norm_rope(T* q,          // [batch, heads, seq, size]
                         T* k, T* v,    // [batch, kv_heads, seq, size]
                         T const* qkv,  // [batch, seq, (heads + 2 kv_heads) size]
                         QkNormRopeParameters const& parameters, QkNormRopeShape const& shape,
                         bool interleaved, cudaStream_t stream) {
    if (shape.turning % 2 != 0 || shape.turning > shape.size) return cudaErrorInvalidValue;
    if (shape.batch * shape.seq == 0) return cudaSuccess;
    auto const launch = interleaved ? launch_qk_norm_rope<T, true> : launch_qk_norm_rope<T, false>;
    return launch(q, k, v, qkv, parameters, shape, stream);
}

}  // namespace opfuse
