// The threads that share a row: lanes of a warp, a block, or a cluster of blocks.
#pragma once
#include <cuda_runtime.h>

#include "tuning.h"

namespace opfuse::device {

__device__ inline int blocks_of_cluster() {
#if __CUDA_ARCH__ >= 900
    return static_cast<int>(__clusterSizeInBlocks());
#else
    return 1;
#endif
}

__device__ inline int rank_in_cluster() {
#if __CUDA_ARCH__ >= 900
    return static_cast<int>(__clusterRelativeBlockRank());
#else
    return 0;
#endif
}

struct Sum {
    static constexpr float kNeutral = 0.f;
    __device__ static float combine(float a, float b) { return a + b; }
};

// NaN is passed over: the sum of exponentials that follows has it again.
struct Maximum {
    static constexpr float kNeutral = -__builtin_inff();
    __device__ static float combine(float a, float b) { return fmaxf(a, b); }
};

// blockDim.x is a power of two up to 32, with any blockDim.y (rows), in a cluster of one; or a
// multiple of 32 up to kMaxLanes with blockDim.y == 1.  Every thread makes one, first of all, and
// every thread calls each reduction, those of rows past the end included.
class Team {
  public:
    __device__ Team() : blocks_(blocks_of_cluster()), rank_(rank_in_cluster()) {
        arrive();  // answered in reduce(): the other blocks' shared memory is there
    }

    __device__ int lanes() const { return blockDim.x * blocks_; }
    __device__ int lane() const { return blockDim.x * rank_ + threadIdx.x; }
    __device__ int blocks() const { return blocks_; }

    __device__ float sum(float value) { return reduce<Sum>(value); }
    __device__ float maximum(float value) { return reduce<Maximum>(value); }

    // The last call: no block ends while the barrier still counts on it.
    __device__ void leave() {
        if (pending_) wait();
    }

  private:
    static constexpr int kMaxWarps = (tuning::kMaxLanes + 31) / 32;

    template <class Operation>
    __device__ static float reduce_lanes(float value, int lanes) {
        for (int offset = lanes / 2; offset > 0; offset /= 2)
            value = Operation::combine(value, __shfl_xor_sync(0xffffffffu, value, offset));
        return value;
    }

    // Each warp hands its value to every block of the cluster; one barrier; each warp reduces all.
    // Two buffers take turns: who writes the one again has passed the barrier behind its readers.
    template <class Operation>
    __device__ float reduce(float value) {
        value = reduce_lanes<Operation>(value, blockDim.x < 32 ? blockDim.x : 32);
        if (blockDim.x <= 32 && blocks_ == 1) return value;
        int const warps = blockDim.x / 32, count = warps * blocks_;
        float* const partial = partials(turn_);
        turn_ ^= 1;
        if (pending_) wait();
        if (static_cast<int>(threadIdx.x) % 32 < blocks_)
            give(partial + rank_ * warps + threadIdx.x / 32, threadIdx.x % 32, value);
        synchronise();
        int const width = count <= 8 ? 8 : count <= 16 ? 16 : 32;
        value = Operation::kNeutral;
        for (int i = threadIdx.x % width; i < count; i += width)
            value = Operation::combine(value, partial[i]);
        return reduce_lanes<Operation>(value, width);
    }

    __device__ static float* partials(int turn) {
        __shared__ float partial[2][kMaxWarps * tuning::kMaxCluster];
        return partial[turn];
    }

    // Writes `value` to where `own` is in block `rank` of the cluster.
    __device__ void give(float* own, int rank, float value) const {
#if __CUDA_ARCH__ >= 900
        if (blocks_ > 1) own = static_cast<float*>(__cluster_map_shared_rank(own, rank));
#endif
        *own = value;
    }

    __device__ void arrive() {
#if __CUDA_ARCH__ >= 900
        if (blocks_ > 1) __cluster_barrier_arrive(), pending_ = true;
#endif
    }
    __device__ void wait() {
#if __CUDA_ARCH__ >= 900
        __cluster_barrier_wait(), pending_ = false;
#endif
    }
    __device__ void synchronise() {
        if (blocks_ == 1) return __syncthreads();
        arrive();
        wait();
    }

    int const blocks_, rank_;
    int turn_ = 0;
    bool pending_ = false;
};

}  // namespace opfuse::device
