// The threads that share a row: lanes of a warp, a block, or a cluster of blocks.
#pragma once
#include <cuda_runtime.h>

#include <cstring>

#include "address.cuh"
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

// What a kernel knows of its teams when it is compiled.  That they are part of a warp, one block,
// or a cluster spares it the other cases' instructions, which short rows wait for.
enum class Reach { kAny, kWarp, kBlock, kCluster };

// blockDim.x is a power of two up to 32, with any blockDim.y (rows), in a cluster of one; or
// a multiple of 32 up to kMaxLanes with blockDim.y == 1.  Every thread makes one, first of all, and
// every thread calls each reduction, those of rows past the end included.
// `kWidth`: as many lanes reduce what warps have, where that is known: a power of two.
template <Reach kReach, int kWidth = 0>
class TeamOf {
  public:
    __device__ TeamOf() {
        if constexpr (kMaySplit) {
            blocks_ = blocks_of_cluster();
            rank_ = rank_in_cluster();
            if (split()) open();
        }
    }

    __device__ int lanes() const { return blockDim.x * blocks_; }
    __device__ int lane() const { return blockDim.x * rank_ + threadIdx.x; }
    __device__ int blocks() const { return blocks_; }

    __device__ float sum(float value) { return reduce<Sum>(value); }
    __device__ float maximum(float value) { return reduce<Maximum>(value); }

    // Those of all threads' values.  The first lane has some where any has.
    __device__ Moments merge(Moments own) {
        own = merge_lanes(own, lanes_of_row());
        if (in_warp()) return own;
        float const values[3] = {own.count, own.mean, own.squares};
        auto const* partial = publish<3>(values);
        int const count = warps() * blocks_, width = width_of(count);
        int const at = threadIdx.x & (width - 1);
        Moments mine;
        if (at < count) mine = {partial[0][at], partial[1][at], partial[2][at]};
#pragma unroll 1
        for (int i = at + width; i < count; i += width)
            mine = device::merge(mine, {partial[0][i], partial[1][i], partial[2][i]});
        return merge_lanes(mine, width);
    }

    // The same, where `count_of(warp)` is known, and `share`: 1 / the count of all.
    template <class CountOf>
    __device__ Moments merge(Moments const& own, float share, CountOf count_of) {
        if (in_warp()) return around(own.mean, own, lanes_of_row(), share);
        float const known = count_of(rank_ * warps() + threadIdx.x / 32);
        Moments const here = around(own.mean, own, 32, known > 0.f ? __fdividef(1.f, known) : 0.f);
        return merge_warps(here, share, count_of);
    }

    // Both over all threads, of more than a warp, in one exchange.
    __device__ void sum(float (&values)[2]) {
        float const halves[1] = {reduce_halves(values)};
        auto const* partial = publish<2, 16>(halves);
        int const count = warps() * blocks_, width = width_of(count);
        values[0] = values[1] = 0.f;
        for_each_part(count, width, [&](int i) {
            values[0] += partial[0][i];
            values[1] += partial[1][i];
        });
        reduce_lanes<Sum>(values, width);
    }

    // Waits for the other blocks of the cluster to begin: the first reduction need not, then.
    __device__ void meet() { settle(); }

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

    // Whether a row is on several blocks, and whether on no more than one warp.
    static constexpr bool kMaySplit = kReach == Reach::kAny || kReach == Reach::kCluster;
    __device__ bool split() const {
        return kReach == Reach::kCluster || (kReach == Reach::kAny && blocks_ > 1);
    }
    __device__ bool in_warp() const {
        return kReach == Reach::kWarp ||
               (kReach == Reach::kAny && blocks_ == 1 && blockDim.x <= 32);
    }
    __device__ static int lanes_of_row() {
        bool const whole = kReach == Reach::kBlock || kReach == Reach::kCluster;
        return whole ? 32 : min(static_cast<int>(blockDim.x), 32);
    }
    // `use(i)` for this thread's of `count` values that `width` lanes reduce.
    template <class Use>
    __device__ static void for_each_part(int count, int width, Use use) {
        int i = threadIdx.x & (width - 1);
        if constexpr (kReach == Reach::kBlock) {  // as many lanes as warps
            if (i < count) use(i);
        } else {
#pragma unroll 1
            for (; i < count; i += width) use(i);
        }
    }
    // How many lanes reduce `count` values.
    __device__ static int width_of(int count) {
        return kWidth > 0 ? kWidth : count <= 8 ? 8 : count <= 16 ? 16 : 32;
    }

    // Each of `values` over groups of `width` lanes, a power of two, the same in the whole block.
    template <class Operation, int kValues>
    __device__ static void reduce_lanes(float (&values)[kValues], int width) {
#pragma unroll
        for (int offset = 16; offset > 0; offset /= 2) {
            if (offset >= width) continue;
#pragma unroll
            for (float& value : values)
                value = Operation::combine(value, __shfl_xor_sync(0xffffffffu, value, offset));
        }
    }

    // A warp's sum of the first in lanes below 16, of the second in the others: half the shuffles.
    __device__ static float reduce_halves(float const (&values)[2]) {
        bool const low = threadIdx.x % 32 < 16;
        float const other = __shfl_xor_sync(0xffffffffu, low ? values[1] : values[0], 16);
        float one[1] = {(low ? values[0] : values[1]) + other};
        reduce_lanes<Sum>(one, 16);
        return one[0];
    }

    // Sums around the first lane's mean, all at once.  That mean is of a part of the values, so
    // that no offset cancels: where it is far from the others, so is their spread.
    __device__ static Moments merge_lanes(Moments const& own, int width) {
        float count[1] = {own.count};
        reduce_lanes<Sum>(count, width);
        return around(own.mean, own, width, count[0] > 0.f ? __fdividef(1.f, count[0]) : 0.f,
                      count[0]);
    }
    __device__ static Moments around(float mean, Moments const& own, int width, float share,
                                     float count = 0.f) {
        float const pivot = __shfl_sync(0xffffffffu, mean, 0, width), apart = mean - pivot;
        float const total = own.count * apart;
        float sums[2] = {total, own.squares + total * apart};
        return around(pivot, sums, width, share, count);
    }
    // Of warps with `count_of(warp)` values each.
    template <class CountOf>
    __device__ Moments merge_warps(Moments const& here, float share, CountOf count_of) {
        float const values[2] = {here.mean, here.squares};
        auto const* partial = publish<2>(values);
        int const count = warps() * blocks_, width = width_of(count);
        float const pivot = partial[0][0];
        float sums[2]{};
        for_each_part(count, width, [&](int i) {
            float const apart = partial[0][i] - pivot, total = count_of(i) * apart;
            sums[0] += total;
            sums[1] += partial[1][i] + total * apart;
        });
        return around(pivot, sums, width, share);
    }
    // `sums`: of the differences from `pivot`, and of their squares.
    __device__ static Moments around(float pivot, float (&sums)[2], int width, float share,
                                     float count = 0.f) {
        reduce_lanes<Sum>(sums, width);
        float const shift = sums[0] * share, squares = sums[1] - sums[0] * shift;  // NaN stays
        return {count, pivot + shift, squares < 0.f ? 0.f : squares};
    }

    // Each warp hands its values to every block of the cluster; then all are there, one warp's
    // behind another's.  Two buffers take turns: who writes the one again has waited for all who
    // read it.
    // `kLanes` of a warp have the same values; where they are 16, each half has its own.
    template <int kValues, int kLanes = 32>
    __device__ auto publish(float const (&values)[kValues * kLanes / 32])
        -> float const (*)[kMostParts] {
        __shared__ __align__(16) float memory[2][kValues][kMostParts];
        auto* const partial = memory[turn_ & 1];
        int const own = rank_ * warps() + threadIdx.x / 32;
        auto* const mine = partial + threadIdx.x % 32 / kLanes;
        constexpr int kOwn = kValues * kLanes / 32;
        if (!split()) {
            if (threadIdx.x % kLanes == 0)
#pragma unroll
                for (int i = 0; i < kOwn; ++i) mine[i][own] = values[i];
            __syncthreads();
        } else {
            begin_exchange(kValues * warps() * blocks_);
#pragma unroll
            for (int i = 0; i < kOwn; ++i) send(&mine[i][own], threadIdx.x % kLanes, values[i]);
            end_exchange();
        }
        ++turn_;
        return partial;
    }

    template <class Operation>
    __device__ float reduce(float value) {
        float values[1] = {value};
        reduce_lanes<Operation>(values, lanes_of_row());
        if (in_warp()) return values[0];
        float const* partial = publish<1>(values)[0];
        int const count = warps() * blocks_, width = width_of(count);
        auto const take = [&](int i) { values[0] = Operation::combine(values[0], partial[i]); };
        if constexpr (kReach == Reach::kAny) {
            // Not by one loop, whose step is kept in a register: AllReduceAddNorm has none left.
            int const at = threadIdx.x & (width - 1);
            values[0] = at < count ? partial[at] : Operation::kNeutral;
#pragma unroll 1
            for (int i = at + 32; i < count; i += 32) take(i);
        } else {
            values[0] = Operation::kNeutral;
            for_each_part(count, width, take);
        }
        reduce_lanes<Operation>(values, width);
        return values[0];
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
        if (kMaySplit && pending_) __cluster_barrier_wait();
        pending_ = false;
    }
    __device__ void begin_exchange(int values) {
        settle();
        if (threadIdx.x == 0) box(turn_).expect(values * static_cast<int>(sizeof(float)));
    }
    __device__ void send(float* slot, int lane, float value) {
        if (lane < blocks_) box(turn_).send(slot, lane, value);
    }
    __device__ void end_exchange() { box(turn_).await(turn_ >> 1 & 1); }
#else
    __device__ void open() {}
    __device__ void settle() {}
    __device__ void begin_exchange(int) {}
    __device__ void send(float*, int, float) {}
    __device__ void end_exchange() {}
#endif

    int blocks_ = 1, rank_ = 0;
    int turn_ = 0;  // reductions so far
    bool pending_ = false;
};

using Team = TeamOf<Reach::kAny>;

}  // namespace opfuse::device
