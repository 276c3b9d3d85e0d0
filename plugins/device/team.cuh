// The threads that share a row: lanes of a warp, a block, or a cluster of blocks.
#pragma once
#include <cuda_runtime.h>

#include "moments.h"
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

// Of the values that both describe.
__device__ inline Moments merge(Moments const& a, Moments const& b) {
    float const count = a.count + b.count;
    if (count == 0.f) return a;
    float const apart = b.mean - a.mean, share = __fdividef(b.count, count);
    return {count, a.mean + apart * share, a.squares + b.squares + apart * apart * a.count * share};
}

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

    // Those of all threads' values.
    __device__ Moments merge(Moments own) {
        own = merge_lanes(own, lanes_of_row());
        if (blockDim.x <= 32 && blocks_ == 1) return own;
        float const values[3] = {own.count, own.mean, own.squares};
        auto const* partial = publish(values);
        int const count = warps() * blocks_, width = width_of(count);
        Moments mine;
        for (int i = threadIdx.x & (width - 1); i < count; i += width)
            mine = device::merge(mine, {partial[0][i], partial[1][i], partial[2][i]});
        return merge_lanes(mine, width);
    }

    // The last call: no block ends while others still wait for it to begin.
    __device__ void leave() { settle(); }

  private:
    static constexpr int kMostParts = tuning::kMaxLanes / 32 * tuning::kMaxCluster;

#if __CUDA_ARCH__ >= 900
    __device__ static Mailbox& box(int turn) {
        __shared__ Mailbox boxes[2];
        return boxes[turn & 1];
    }
#endif

    __device__ static int warps() { return blockDim.x / 32; }

    template <class Operation, int kWidth>
    __device__ static float reduce_lanes(float value) {
#pragma unroll
        for (int offset = kWidth / 2; offset > 0; offset /= 2)
            value = Operation::combine(value, __shfl_xor_sync(0xffffffffu, value, offset));
        return value;
    }

    // Over groups of `width` lanes, a power of two that is the same in the whole block.
    template <class Operation>
    __device__ static float reduce_lanes(float value, int width) {
        if (width == 32) return reduce_lanes<Operation, 32>(value);
        if (width == 16) return reduce_lanes<Operation, 16>(value);
        if (width == 8) return reduce_lanes<Operation, 8>(value);
        if (width == 4) return reduce_lanes<Operation, 4>(value);
        return width == 2 ? reduce_lanes<Operation, 2>(value) : value;
    }

    __device__ static int lanes_of_row() { return min(static_cast<int>(blockDim.x), 32); }
    // How many lanes reduce `count` values of the block's warps.
    __device__ static int width_of(int count) { return count <= 8 ? 8 : count <= 16 ? 16 : 32; }

    // First the mean of all, then what each has around it.
    __device__ static Moments merge_lanes(Moments const& own, int lanes) {
        float const count = reduce_lanes<Sum>(own.count, lanes);
        float const total = reduce_lanes<Sum>(own.count * own.mean, lanes);
        float const mean = count > 0.f ? total / count : 0.f, apart = own.mean - mean;
        float const squares = own.squares + own.count * apart * apart;
        return {count, mean, reduce_lanes<Sum>(squares, lanes)};
    }

    // Each warp hands its values to every block of the cluster; then all are there, one warp's
    // behind another's.  Two buffers take turns: who writes the one again has waited for all who
    // read it.
    template <int kValues>
    __device__ auto publish(float const (&values)[kValues]) -> float const (*)[kMostParts] {
        __shared__ float memory[2][kValues][kMostParts];
        auto* const partial = memory[turn_ & 1];
        int const own = rank_ * warps() + threadIdx.x / 32;
        if (blocks_ == 1) {
            if (threadIdx.x % 32 == 0)
#pragma unroll
                for (int i = 0; i < kValues; ++i) partial[i][own] = values[i];
            __syncthreads();
        } else {
            begin_exchange(kValues * warps() * blocks_);
#pragma unroll
            for (int i = 0; i < kValues; ++i) send(&partial[i][own], values[i]);
            end_exchange();
        }
        ++turn_;
        return partial;
    }

    template <class Operation>
    __device__ float reduce(float value) {
        value = reduce_lanes<Operation>(value, lanes_of_row());
        if (blockDim.x <= 32 && blocks_ == 1) return value;
        float const values[1] = {value};
        float const* partial = publish(values)[0];
        int const count = warps() * blocks_, width = width_of(count);
        int const at = threadIdx.x & (width - 1);
        value = at < count ? partial[at] : Operation::kNeutral;
        for (int i = at + width; i < count; i += width)
            value = Operation::combine(value, partial[i]);
        return reduce_lanes<Operation>(value, width);
    }

#if __CUDA_ARCH__ >= 900
    // The other blocks' mailboxes are there once settle() has returned.
    __device__ void open() {
        if (threadIdx.x == 0) {
            box(0).open();
            box(1).open();
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
    __device__ void begin_exchange(int values) {
        settle();
        if (threadIdx.x == 0) box(turn_).expect(values * static_cast<int>(sizeof(float)));
    }
    __device__ void send(float* slot, float value) {
        int const lane = threadIdx.x % 32;
        if (lane < blocks_) box(turn_).send(slot, lane, value);
    }
    __device__ void end_exchange() { box(turn_).await(turn_ >> 1 & 1); }
#else
    __device__ void open() {}
    __device__ void settle() {}
    __device__ void begin_exchange(int) {}
    __device__ void send(float*, float) {}
    __device__ void end_exchange() {}
#endif

    int const blocks_, rank_;
    int turn_ = 0;  // reductions so far
    bool pending_ = false;
};

}  // namespace opfuse::device
