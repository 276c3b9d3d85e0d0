// How many keys are left where a mask hides those at the end of a batch from every query.
#pragma once
#include "../device/launch.cuh"
#include "softmax.cuh"

namespace opfuse {

// ---- kernels

inline constexpr int kLengthThreads = 256;

// A block has a batch.  All keys are left where the mask hides each of them, which may mean that
// all weigh alike.
template <class T>
__global__ void __launch_bounds__(kLengthThreads)
    lengths_kernel(Attention const a, int32_t* lengths) {
    __shared__ int last[kLengthThreads / 32];
    int64_t const start = mask_start(a, blockIdx.x, 0, 0);
    int own_last = 0;
    bool any = false;
    for (int key = threadIdx.x; key < a.keys; key += kLengthThreads) {
        float const own = mask_at<T>(a.mask, start, key) * kLog2E;
        if (!(own <= kHiding)) own_last = key + 1;
        any = any || own > kSeen;
    }
    own_last = __reduce_max_sync(0xffffffffu, own_last);
    if (threadIdx.x % 32 == 0) last[threadIdx.x / 32] = own_last;
    bool const seen = __syncthreads_or(any);
    if (threadIdx.x > 0) return;
    for (int of_warp : last) own_last = max(own_last, of_warp);
    lengths[blockIdx.x] = seen ? own_last : a.keys;
}

// ---- launchers

template <class T>
cudaError_t find_lengths(Attention const& a, int32_t* lengths, cudaStream_t stream) {
    device::Grid const grid{a.batch, dim3(kLengthThreads)};
    return device::launch(lengths_kernel<T>, device::kInOrder, grid, stream, a, lengths);
}

}  // namespace opfuse
