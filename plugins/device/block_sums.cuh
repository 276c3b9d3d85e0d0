// Sums over a block whose warps meet in shared memory once: where they do is known ahead of time.
#pragma once
#include "address.cuh"
#include "launch.cuh"
#include "reduce.cuh"

namespace opfuse::device {

// Of up to kWidth warps, a multiple of four.  Every thread makes one, and calls each sum, of which
// there are two at most: the n-th has `turn` n.
template <int kWidth>
class BlockSums {
  public:
    __device__ BlockSums() {
        __shared__ __align__(16) float parts[kTurns * 2 * kWidth];
        int const warps = blockDim.x / 32, warp = threadIdx.x / 32;
        // What no warp writes adds nothing.
        for (int i = threadIdx.x; i < kTurns * 2 * kWidth; i += blockDim.x)
            if (i % kWidth >= warps) parts[i] = 0.f;
        parts_ = settled(shared_address(parts));
        own_ = settled(shared_address(&parts[threadIdx.x % 32 / 16 * kWidth + warp]));
    }

    // Over all threads.
    __device__ float add(float value, int turn) const {
        publish(warp_sum(value), threadIdx.x % 32 == 0, turn);
        __syncthreads();
        return read(0, turn);
    }
    // Both, with as many shuffles: lanes below 16 go on with the first.  `meanwhile` is done behind
    // them, where other warps are waited for.
    template <class Meanwhile>
    __device__ void add(float (&values)[2], int turn, Meanwhile meanwhile) const {
        bool const low = threadIdx.x % 32 < 16;
        float half = low ? values[0] : values[1];
        half += __shfl_xor_sync(0xffffffffu, low ? values[1] : values[0], 16);
#pragma unroll
        for (int offset = 8; offset > 0; offset /= 2)
            half += __shfl_xor_sync(0xffffffffu, half, offset);
        publish(half, threadIdx.x % 16 == 0, turn);
        meanwhile();
        __syncthreads();
        values[0] = read(0, turn);
        values[1] = read(1, turn);
    }

  private:
    static constexpr int kTurns = 2, kBytesOfTurn = 2 * kWidth * sizeof(float);

    __device__ void publish(float value, bool by_this, int turn) const {
        asm volatile(
            "{ .reg .pred own; setp.ne.s32 own, %2, 0; @own st.shared.f32 [%0], %1; }" ::"r"(
                own_ + turn * kBytesOfTurn),
            "f"(value), "r"(static_cast<int>(by_this))
            : "memory");
    }
    // Every thread reads what all warps have: quicker than by lanes.
    __device__ float read(int which, int turn) const {
        float parts[kWidth];
#pragma unroll
        for (int i = 0; i < kWidth; i += 4)
            asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                         : "=f"(parts[i]), "=f"(parts[i + 1]), "=f"(parts[i + 2]),
                           "=f"(parts[i + 3])
                         : "r"(parts_ + turn * kBytesOfTurn + (which * kWidth + i) * 4)
                         : "memory");
#pragma unroll
        for (int count = kWidth / 2; count > 0; count /= 2)
#pragma unroll
            for (int i = 0; i < count; ++i) parts[i] += parts[i + count];
        return parts[0];
    }

    unsigned parts_, own_;  // in shared memory
};

// As BlockSums, of a team that knows no better.
template <class Team>
class TeamSums {
  public:
    __device__ explicit TeamSums(Team& team) : team_(team) {}

    __device__ float add(float value, int) const { return team_.sum(value); }
    template <class Meanwhile>
    __device__ void add(float (&values)[2], int, Meanwhile meanwhile) const {
        meanwhile();
        team_.sum(values);
    }

  private:
    Team& team_;
};

}  // namespace opfuse::device
