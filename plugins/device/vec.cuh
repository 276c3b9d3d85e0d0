// Vectors of elements, 16 bytes wide on the fast path and one element wide on the general path.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>

#include "parameter.h"

namespace opfuse::device {

template <class T, int kSize>
struct alignas(sizeof(T) * kSize) Vec {
    T at[kSize];
};

inline constexpr int kVecBytes = 16;

template <class A, class B>
struct Pair {
    A first;
    B second;
};

template <class A, class B>
__device__ Pair<A, B> pair(A const& first, B const& second) {
    return {first, second};
}

// The `index`-th vector of `data`, which is aligned to the vector's size.
template <int kSize, class T>
__device__ Vec<T, kSize> load(T const* data, int64_t index) {
    return reinterpret_cast<Vec<T, kSize> const*>(data)[index];
}

template <class T, int kSize>
__device__ void store(T* data, int64_t index, Vec<T, kSize> const& value) {
    reinterpret_cast<Vec<T, kSize>*>(data)[index] = value;
}

// What an op reads and writes in all, in bytes, from which on L2 (50 MB on H100) keeps too little
// of it for the next op.  Streaming then leaves L2 to what this op itself reads again.  Of Rope at
// 4 x 32 x 4096 x 128 fp16, streaming stores made 96 out of 108 us, and streaming loads 99 out of
// 105 us where each sequence has cos and sin of its own.
inline constexpr int64_t kLargeBytes = 64 << 20;

// load and store for 16 bytes of a tensor that is large where kLarge.
template <int kSize, bool kLarge, class T>
__device__ Vec<T, kSize> load_large(T const* data, int64_t index) {
    if constexpr (!kLarge) {
        return load<kSize>(data, index);
    } else {
        static_assert(sizeof(Vec<T, kSize>) == kVecBytes);
        uint4 const bits = __ldcs(reinterpret_cast<uint4 const*>(data) + index);
        return reinterpret_cast<Vec<T, kSize> const&>(bits);
    }
}

template <bool kLarge, class T, int kSize>
__device__ void store_large(T* data, int64_t index, Vec<T, kSize> const& value) {
    if constexpr (!kLarge) {
        store(data, index, value);
    } else {
        static_assert(sizeof(Vec<T, kSize>) == kVecBytes);
        __stcs(reinterpret_cast<uint4*>(data) + index, reinterpret_cast<uint4 const&>(value));
    }
}

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(__half value) { return __half2float(value); }
__device__ inline float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

// Round to nearest even.
template <class T>
__device__ T from_float(float value);
template <>
__device__ inline float from_float<float>(float value) {
    return value;
}
template <>
__device__ inline __half from_float<__half>(float value) {
    return __float2half_rn(value);
}
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float value) {
    return __float2bfloat16_rn(value);
}

// The branch on is_float is the same for the whole grid, and costs less than twice the kernels.
template <class T, int kSize>
__device__ Vec<float, kSize> load_parameter(Parameter parameter, int64_t index) {
    Vec<float, kSize> out;
    if (parameter.is_float) {
        constexpr int kStep = kSize < 4 ? kSize : 4;  // floats in one 16-byte load
        auto const* data = static_cast<float const*>(parameter.data);
#pragma unroll
        for (int i = 0; i < kSize; i += kStep) {
            auto const part = load<kStep>(data, (index * kSize + i) / kStep);
#pragma unroll
            for (int k = 0; k < kStep; ++k) out.at[i + k] = part.at[k];
        }
    } else {
        auto const part = load<kSize>(static_cast<T const*>(parameter.data), index);
#pragma unroll
        for (int i = 0; i < kSize; ++i) out.at[i] = to_float(part.at[i]);
    }
    return out;
}

// Elements [first, first + kSize) of data[0, count), all of which exist, at any alignment: aligned
// 16-byte loads and shifts where those stay inside of `data`, single loads elsewhere.
template <int kSize, class T>
__device__ Vec<float, kSize> load_anywhere(T const* data, int64_t first, int64_t count) {
    constexpr int kBytes = kSize * sizeof(T), kWords = kBytes / 4, kRead = kWords + 4;
    Vec<float, kSize> out;
    auto const begin = reinterpret_cast<uintptr_t>(data + first);
    uintptr_t const floor = begin / kVecBytes * kVecBytes;
    if (floor < reinterpret_cast<uintptr_t>(data) ||
        floor + kBytes + kVecBytes > reinterpret_cast<uintptr_t>(data + count)) {
#pragma unroll
        for (int i = 0; i < kSize; ++i) out.at[i] = to_float(data[first + i]);
        return out;
    }
    uint32_t word[kRead];
#pragma unroll
    for (int i = 0; i < kRead; i += 4) {
        uint4 const part = reinterpret_cast<uint4 const*>(floor)[i / 4];
        word[i] = part.x, word[i + 1] = part.y, word[i + 2] = part.z, word[i + 3] = part.w;
    }
    auto const shift = static_cast<unsigned>(begin - floor);
    if (shift & 8)
#pragma unroll
        for (int i = 0; i + 2 < kRead; ++i) word[i] = word[i + 2];
    if (shift & 4)
#pragma unroll
        for (int i = 0; i + 3 < kRead; ++i) word[i] = word[i + 1];
    if (shift & 2)
#pragma unroll
        for (int i = 0; i < kWords; ++i) word[i] = __funnelshift_r(word[i], word[i + 1], 16);
    T item[kSize];
    memcpy(item, word, kBytes);
#pragma unroll
    for (int i = 0; i < kSize; ++i) out.at[i] = to_float(item[i]);
    return out;
}

template <class... Pointers>
bool aligned(Pointers const*... data) {
    return ((reinterpret_cast<uintptr_t>(data) % kVecBytes == 0) && ...);
}

// All the same number of bytes past a multiple of 16.
template <class... Pointers>
bool congruent(void const* first, Pointers const*... rest) {
    auto const past = [](void const* data) {
        return reinterpret_cast<uintptr_t>(data) % kVecBytes;
    };
    return ((past(rest) == past(first)) && ...);
}

}  // namespace opfuse::device
