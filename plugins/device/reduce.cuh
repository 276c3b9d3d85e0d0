// Reductions over the threads that share a row, or a warp.
#pragma once

namespace opfuse::device {

// The sum of `value` over threadIdx.x, in every thread.
// blockDim.x is a power of two up to 32, with any blockDim.y (rows); or a multiple of 32 up to 1024
// with blockDim.y == 1.  Every thread of the block calls it, rows past the end included.
__device__ inline float row_sum(float value) {
    int const lanes = blockDim.x < 32 ? blockDim.x : 32;
    for (int offset = lanes / 2; offset > 0; offset /= 2)
        value += __shfl_xor_sync(0xffffffffu, value, offset);
    if (blockDim.x <= 32) return value;

    __shared__ float partial[32];
    __syncthreads();  // the previous call's readers are done
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
    __syncthreads();
    value = threadIdx.x % 32 < blockDim.x / 32 ? partial[threadIdx.x % 32] : 0.f;
    for (int offset = 16; offset > 0; offset /= 2)
        value += __shfl_xor_sync(0xffffffffu, value, offset);
    return value;
}

// Over all lanes of a warp, in every lane.
__device__ inline float warp_max(float value) {
    for (int offset = 16; offset > 0; offset /= 2)
        value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, offset));
    return value;
}

__device__ inline float warp_sum(float value) {
    for (int offset = 16; offset > 0; offset /= 2)
        value += __shfl_xor_sync(0xffffffffu, value, offset);
    return value;
}

}  // namespace opfuse::device
