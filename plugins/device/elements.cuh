// Sums of the elements of vectors, and of two vectors.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstring>

#include "vec.cuh"

namespace opfuse::device {

// What one instruction adds.
float unit_of(float);
__half2 unit_of(__half);
__nv_bfloat162 unit_of(__nv_bfloat16);

__device__ inline float add_two(float a, float b) { return a + b; }
__device__ inline __half2 add_two(__half2 a, __half2 b) { return __hadd2(a, b); }
__device__ inline __nv_bfloat162 add_two(__nv_bfloat162 a, __nv_bfloat162 b) {
    return __hadd2(a, b);
}

// a + b, rounded once: two elements an instruction where those have 16 bits.
template <class T, int kCount>
__device__ Vec<T, kCount> add(Vec<T, kCount> const& a, Vec<T, kCount> const& b) {
    using Unit = decltype(unit_of(T{}));
    constexpr int kUnits = kCount * sizeof(T) / sizeof(Unit);
    Unit first[kUnits], second[kUnits];
    memcpy(first, &a, sizeof(a));
    memcpy(second, &b, sizeof(b));
#pragma unroll
    for (int i = 0; i < kUnits; ++i) first[i] = add_two(first[i], second[i]);
    Vec<T, kCount> total;
    memcpy(&total, first, sizeof(total));
    return total;
}

// In two chains.
template <int kCount>
__device__ float sum_of_squares(Vec<float, kCount> const& values) {
    float total[2]{};
#pragma unroll
    for (int i = 0; i < kCount; ++i) total[i % 2] += values.at[i] * values.at[i];
    return total[0] + total[1];
}
template <int kCount>
__device__ float sum_of(Vec<float, kCount> const& values) {
    float total[2]{};
#pragma unroll
    for (int i = 0; i < kCount; ++i) total[i % 2] += values.at[i];
    return total[0] + total[1];
}

}  // namespace opfuse::device
