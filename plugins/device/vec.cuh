// Vectors of elements, 16 bytes wide on the fast path and one element wide on the general path.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "parameter.h"

namespace opfuse::device {

template <class T, int kSize>
struct alignas(sizeof(T) * kSize) Vec {
    T at[kSize];
};

inline constexpr int kVecBytes = 16;

// Two addends, loaded before either is used.
template <class Item>
struct Terms {
    Item first, second;
};

// The `index`-th vector of `data`, which is aligned to the vector's size.
template <int kSize, class T>
__device__ Vec<T, kSize> load(T const* data, int64_t index) {
    return reinterpret_cast<Vec<T, kSize> const*>(data)[index];
}

// The `index`-th vector of `data`.  One store, said outright: nvcc splits the copy of a struct into
// stores of its members where it loses sight of the alignment.
template <class T, int kSize>
__device__ void store(T* data, int64_t index, Vec<T, kSize> const& value) {
    if constexpr (sizeof(value) == sizeof(uint4)) {
        uint4 words;
        memcpy(&words, &value, sizeof(words));
        reinterpret_cast<uint4*>(data)[index] = words;
    } else {
        reinterpret_cast<Vec<T, kSize>*>(data)[index] = value;
    }
}

// The vector of 16 bytes at `data`, asked for here: nvcc would move a load down to where registers
// are free.
template <int kSize, bool kKeptInL1 = true, class T>
__device__ Vec<T, kSize> load_now(T const* data) {
    static_assert(sizeof(Vec<T, kSize>) == sizeof(uint4));
    uint4 bits;
    if constexpr (kKeptInL1)
        asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(bits.x), "=r"(bits.y), "=r"(bits.z), "=r"(bits.w)
                     : "l"(data));
    else
        asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(bits.x), "=r"(bits.y), "=r"(bits.z), "=r"(bits.w)
                     : "l"(data));
    Vec<T, kSize> items;
    memcpy(&items, &bits, sizeof(items));
    return items;
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

template <class T, int kVec>
__device__ Vec<float, kVec> widen(Vec<T, kVec> const& from) {
    Vec<float, kVec> to;
#pragma unroll
    for (int i = 0; i < kVec; ++i) to.at[i] = to_float(from.at[i]);
    return to;
}

__device__ inline __half2 narrow_two(__half, float a, float b) { return __floats2half2_rn(a, b); }
__device__ inline __nv_bfloat162 narrow_two(__nv_bfloat16, float a, float b) {
    return __floats2bfloat162_rn(a, b);
}

// Rounds to nearest even, two elements at once where there is an instruction for that.
template <class T, int kVec>
__device__ Vec<T, kVec> narrow(Vec<float, kVec> const& from) {
    Vec<T, kVec> to;
    if constexpr (kVec == 1 || std::is_same_v<T, float>) {
#pragma unroll
        for (int i = 0; i < kVec; ++i) to.at[i] = from_float<T>(from.at[i]);
    } else {
#pragma unroll
        for (int i = 0; i < kVec; i += 2) {
            auto const both = narrow_two(T{}, from.at[i], from.at[i + 1]);
            to.at[i] = both.x;
            to.at[i + 1] = both.y;
        }
    }
    return to;
}

// Of T already, or of fp32 that holds values of T.
template <class T, class Element, int kSize>
__device__ Vec<T, kSize> rounded(Vec<Element, kSize> const& item) {
    if constexpr (std::is_same_v<T, Element>)
        return item;
    else
        return narrow<T>(item);
}

// kSize elements of a parameter as they lie in memory, T or float: loads without a branch, so that
// several are in flight, and conversion later.  `is_float` is the same for the whole grid, and
// costs less than twice the kernels.
template <class T, int kSize>
struct Raw {
    static_assert(kSize == 1 || kSize * sizeof(T) == kVecBytes);
    static constexpr int kWords = (kSize * sizeof(float) + 3) / 4;

    __device__ Vec<float, kSize> floats() const {
        Vec<float, kSize> out;
        if (is_float) {
            memcpy(&out, word, sizeof(out));
        } else {
            T item[kSize];
            memcpy(item, word, sizeof(item));
#pragma unroll
            for (int i = 0; i < kSize; ++i) out.at[i] = to_float(item[i]);
        }
        return out;
    }

    uint32_t word[kWords];
    bool is_float;
};

// The `index`-th vector of `parameter`, which is aligned to 16 bytes or, for kSize 1, to elements.
template <class T, int kSize>
__device__ Raw<T, kSize> load_raw(Parameter parameter, int64_t index) {
    Raw<T, kSize> raw{{}, parameter.is_float};
    if constexpr (kSize == 1) {
        if (parameter.is_float || sizeof(T) == 4)
            raw.word[0] = static_cast<uint32_t const*>(parameter.data)[index];
        else
            raw.word[0] = static_cast<uint16_t const*>(parameter.data)[index];
    } else {
        int const bytes = kSize * (parameter.is_float ? sizeof(float) : sizeof(T));
        auto const* data = static_cast<char const*>(parameter.data) + index * bytes;
#pragma unroll
        for (int i = 0; i < Raw<T, kSize>::kWords; i += 4) {
            if (i > 0 && !parameter.is_float) break;
            uint4 const part = reinterpret_cast<uint4 const*>(data)[i / 4];
            raw.word[i] = part.x, raw.word[i + 1] = part.y;
            raw.word[i + 2] = part.z, raw.word[i + 3] = part.w;
        }
    }
    return raw;
}

template <class T, int kSize>
__device__ Vec<float, kSize> load_parameter(Parameter parameter, int64_t index) {
    return load_raw<T, kSize>(parameter, index).floats();
}

// kSize elements at any alignment, as the aligned blocks of 16 bytes that hold them.
template <class T, int kSize>
struct Blocks {
    static constexpr int kBytes = kSize * sizeof(T), kWords = kBytes / 4;

    // Whether the blocks of elements [first, first + kSize) lie inside of data[0, count).
    __device__ static bool inside(T const* data, int64_t first, int64_t count) {
        int64_t const floor = first * sizeof(T) - shift_of(data + first);  // bytes from `data`
        return floor >= 0 && floor + kBytes + kVecBytes <= count * static_cast<int64_t>(sizeof(T));
    }

    __device__ explicit Blocks(T const* first) : shift(shift_of(first)) {
        auto const* const floor = reinterpret_cast<char const*>(first) - shift;
#pragma unroll
        for (int i = 0; i < kWords + 4; i += 4) {
            uint4 const part = reinterpret_cast<uint4 const*>(floor)[i / 4];
            word[i] = part.x, word[i + 1] = part.y, word[i + 2] = part.z, word[i + 3] = part.w;
        }
    }

    __device__ Vec<T, kSize> elements() const {
        uint32_t part[kWords + 4];
        memcpy(part, word, sizeof(part));
#pragma unroll
        for (int i = 0; i < kWords + 2; ++i) part[i] = shift & 8 ? part[i + 2] : part[i];
#pragma unroll
        for (int i = 0; i < kWords + 1; ++i) part[i] = shift & 4 ? part[i + 1] : part[i];
#pragma unroll
        for (int i = 0; i < kWords; ++i)
            part[i] = __funnelshift_r(part[i], part[i + 1], shift & 2 ? 16 : 0);
        Vec<T, kSize> out;
        memcpy(&out, part, kBytes);
        return out;
    }

    __device__ static unsigned shift_of(T const* first) {
        return static_cast<unsigned>(reinterpret_cast<uintptr_t>(first) % kVecBytes);
    }

    uint32_t word[kWords + 4];
    unsigned shift;  // bytes ahead of the first element
};

// Elements [first, first + kSize) of data[0, count), all of which exist, at any alignment: aligned
// 16-byte loads and shifts where those stay inside of `data`, single loads elsewhere.
template <int kSize, class T>
__device__ Vec<T, kSize> load_anywhere(T const* data, int64_t first, int64_t count) {
    if (Blocks<T, kSize>::inside(data, first, count))
        return Blocks<T, kSize>(data + first).elements();
    Vec<T, kSize> out;
#pragma unroll
    for (int i = 0; i < kSize; ++i) out.at[i] = data[first + i];
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
