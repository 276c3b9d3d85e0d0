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

#if __CUDA_ARCH__ >= 900

__device__ inline unsigned shared_address(void const* data) {
    return static_cast<unsigned>(__cvta_generic_to_shared(data));
}

// A barrier in shared memory that counts bytes which other blocks of the cluster write beside it.
// Unlike the cluster's own barrier it waits for no stores to global memory: with that one, each
// reduction of 1024x65536 took 50 us longer on an H100.
struct Mailbox {
    __device__ void open() {
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(&state)));
    }
    __device__ void expect(int bytes) {
        asm volatile(
            "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&state)),
            "r"(bytes)
            : "memory");
    }
    // Writes `value` to where `own` is in block `rank`, and tells that block's mailbox.
    __device__ void send(float* own, int rank, float value) {
        asm volatile(
            "{ .reg .b32 to, box; mapa.shared::cluster.u32 to, %0, %2;"
            "  mapa.shared::cluster.u32 box, %1, %2;"
            "  st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [to], %3, [box]; }" ::"r"(
                shared_address(own)),
            "r"(shared_address(&state)), "r"(rank), "r"(__float_as_uint(value))
            : "memory");
    }
    __device__ void await(int parity) {
        asm volatile(
            "{ .reg .pred done;"
            "  again: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;"
            "  @!done bra again; }" ::"r"(shared_address(&state)),
            "r"(parity)
            : "memory");
    }

    unsigned long long state;
};

#endif

// blockDim.x is a power of two up to 32, with any blockDim.y (rows), in a cluster of one; or a
// multiple of 32 up to kMaxLanes with blockDim.y == 1.  Every thread makes one, first of all, and
// every thread calls each reduction, those of rows past the end included.
class Team {
  public:
    __device__ Team() : blocks_(blocks_of_cluster()), rank_(rank_in_cluster()) {
        if (blocks_ > 1) open();
    }

    __device__ int lanes() const { return blockDim.x * blocks_; }
    __device__ int lane() const { return blockDim.x * rank_ + threadIdx.x; }
    __device__ int blocks() const { return blocks_; }

    __device__ float sum(float value) { return reduce<Sum>(value); }
    __device__ float maximum(float value) { return reduce<Maximum>(value); }

    // The last call: no block ends while others still wait for it to begin.
    __device__ void leave() { settle(); }

  private:
    struct Shared {
        float partial[2][(tuning::kMaxLanes + 31) / 32 * tuning::kMaxCluster];
#if __CUDA_ARCH__ >= 900
        Mailbox box[2];
#endif
    };

    __device__ static Shared& shared() {
        __shared__ Shared memory;
        return memory;
    }

    template <class Operation>
    __device__ static float reduce_lanes(float value, int lanes) {
        for (int offset = lanes / 2; offset > 0; offset /= 2)
            value = Operation::combine(value, __shfl_xor_sync(0xffffffffu, value, offset));
        return value;
    }

    // Each warp hands its value to every block of the cluster, and reduces all that it was handed.
    // Two buffers take turns: who writes the one again has waited for all who read it.
    template <class Operation>
    __device__ float reduce(float value) {
        value = reduce_lanes<Operation>(value, blockDim.x < 32 ? blockDim.x : 32);
        if (blockDim.x <= 32 && blocks_ == 1) return value;
        int const warps = blockDim.x / 32, count = warps * blocks_, warp = threadIdx.x / 32;
        float* const partial = shared().partial[turn_ & 1];
        if (blocks_ == 1) {
            if (threadIdx.x % 32 == 0) partial[warp] = value;
            __syncthreads();
        } else {
            exchange(partial + rank_ * warps + warp, count, value);
        }
        ++turn_;
        int const width = count <= 8 ? 8 : count <= 16 ? 16 : 32;
        value = Operation::kNeutral;
        for (int i = threadIdx.x % width; i < count; i += width)
            value = Operation::combine(value, partial[i]);
        return reduce_lanes<Operation>(value, width);
    }

#if __CUDA_ARCH__ >= 900
    // The other blocks' mailboxes are there once settle() has returned.
    __device__ void open() {
        if (threadIdx.x == 0) {
            shared().box[0].open();
            shared().box[1].open();
            asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        }
        __syncthreads();
        __cluster_barrier_arrive_relaxed();
        pending_ = true;
    }
    __device__ void settle() {
        if (pending_) __cluster_barrier_wait();
        pending_ = false;
    }
    __device__ void exchange(float* slot, int count, float value) {
        settle();
        Mailbox& box = shared().box[turn_ & 1];
        if (threadIdx.x == 0) box.expect(count * static_cast<int>(sizeof(float)));
        int const lane = threadIdx.x % 32;
        if (lane < blocks_) box.send(slot, lane, value);
        box.await(turn_ >> 1 & 1);
    }
#else
    __device__ void open() {}
    __device__ void settle() {}
    __device__ void exchange(float*, int, float) {}
#endif

    int const blocks_, rank_;
    int turn_ = 0;  // reductions so far
    bool pending_ = false;
};

}  // namespace opfuse::device
