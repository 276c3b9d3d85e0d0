// What kernel.cuh launches, for host code.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

#include "../device/parameter.h"

namespace opfuse {

struct QkNormRopeShape {
    int64_t batch, seq;
    int heads, kv_heads;
    int size;     // elements of a head
    int turning;  // the first of them that turn: a row of cos and of sin; even
    // Rows of cos and of sin between batches and between positions; 0 where they are broadcast.
    int64_t cos_batch, cos_seq, sin_batch, sin_seq;

    __host__ __device__ int64_t all_heads() const { return heads + 2 * int64_t{kv_heads}; }
};

// What is done to q and k on the way.  Null: not at all.
struct QkNormRopeParameters {
    device::Parameter cos, sin;          // [..., turning]
    device::Parameter q_gamma, k_gamma;  // [size], or null
    device::Parameter bias;              // [(heads + 2 kv_heads) size], or null
    float epsilon;
};

// T is float, __half, or __nv_bfloat16.  Launches on `stream`, and does not wait.
template <class T>
cudaError_t qk_norm_rope(T* q,          // [batch, heads, seq, size]
                         T* k, T* v,    // [batch, kv_heads, seq, size]
                         T const* qkv,  // [batch, seq, (heads + 2 kv_heads) size]
                         QkNormRopeParameters const& parameters, QkNormRopeShape const& shape,
                         bool interleaved, cudaStream_t stream);

}  // namespace opfuse
