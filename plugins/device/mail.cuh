// Vectors that ranks write into each other's memory, without a barrier: the data is its own flag.
//
// An inbox that nobody has written to holds kEmpty in every 32-bit word, and no vector that is sent
// has such a word, so that a reader sees of each word by itself whether it has come: nothing is
// assumed about the order in which words arrive.  Who has read a vector empties its place.  Calls
// take turns with two inboxes: one is filled again two calls later, when its sender has had data
// from all others of the call between, who therefore had ended this one.  So every call that takes
// a turn has to wait, directly or by way of another rank, for data of every other rank.
#pragma once
#include "peers.h"

namespace opfuse::device {

inline constexpr unsigned kEmpty = 0xffffffffu;   // two NaN of 16 bits, or one of 32
inline constexpr unsigned kFilled = 0x7fff7fffu;  // what is sent in its stead: NaN of any type

// Looks in vain until a thread asks whether to go on, about 200 us; and 2^kQuietBits nanoseconds, a
// millisecond, in which one thread of the GPU asks the host.  Each such read takes 0.5 us on PCIe,
// one after the other: when every warp did it, a rank that had waited was late itself, the next one
// waited for it, and sums of 512 KB took 580 us instead of 6 from then on.
inline constexpr unsigned kLooksBetween = 256, kQuietBits = 20;

__device__ inline unsigned filled(unsigned word) { return word == kEmpty ? kFilled : word; }

__device__ inline void send(uint4* to, uint4 vector) {
    asm volatile("st.relaxed.sys.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to),
                 "r"(filled(vector.x)), "r"(filled(vector.y)), "r"(filled(vector.z)),
                 "r"(filled(vector.w))
                 : "memory");
}

__device__ inline uint4 look(uint4 const* at) {
    uint4 vector;
    asm volatile("ld.relaxed.sys.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(vector.x), "=r"(vector.y), "=r"(vector.z), "=r"(vector.w)
                 : "l"(at)
                 : "memory");
    return vector;
}

__device__ inline bool has_come(uint4 const& vector) {
    return vector.x != kEmpty && vector.y != kEmpty && vector.z != kEmpty && vector.w != kEmpty;
}

__device__ inline uint64_t nanoseconds() {
    uint64_t now;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
    return now;
}

// One call's turn, as one thread sees it.
class Mail {
  public:
    // Behind wait_for_previous().
    __device__ explicit Mail(Peers const& peers) : peers_(peers) {
        asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];"
                     : "=r"(inbox_)
                     : "l"(&peers.turn->inbox)
                     : "memory");
    }

    __device__ int rank() const { return peers_.rank; }
    __device__ int size() const { return peers_.size; }
    // The inbox of this call at rank `to`, and the place of this rank among those who write there.
    __device__ uint4* inbox(int to) const { return peers_.inboxes[to] + inbox_ * kInboxVectors; }
    __device__ int place_at(int to) const { return rank() < to ? rank() : rank() - 1; }

    // Once a kernel, by all threads: the next call's turn is set when all blocks know of this
    // one's.
    __device__ void settle() {
        __syncthreads();  // all threads of this block do
        if (threadIdx.x == 0 && atomicAdd(&peers_.turn->readers, 1u) == gridDim.x - 1)
            *peers_.turn = {1 - inbox_, 0};
    }

    // Waits for vectors from[0], from[stride] ... of this rank's inbox, `count` of them.
    template <int kMost>
    __device__ void take(uint4 (&got)[kMost], uint4* from, int64_t stride, int count) {
        bool all;
        do {
            all = true;
#pragma unroll
            for (int i = 0; i < kMost; ++i)
                if (i < count) got[i] = look(from + i * stride);
#pragma unroll
            for (int i = 0; i < kMost; ++i)
                if (i < count) all = all && has_come(got[i]);
        } while (!all && wait_on());
#pragma unroll
        for (int i = 0; i < kMost; ++i)
            if (i < count) from[i * stride] = {kEmpty, kEmpty, kEmpty, kEmpty};
    }

  private:
    // False where a rank has died or stays away for too long: what is read is rubbish then, and the
    // host is told.
    __device__ bool wait_on() {
        if (++looks_ % kLooksBetween != 0) return true;
        auto* const watch = static_cast<Watch volatile*>(peers_.watch);
        if (watch->stop != 0) return false;
        uint64_t const now = nanoseconds();
        if (since_ == 0) since_ = now;
        auto const tick = static_cast<unsigned>(now >> kQuietBits);
        unsigned const asked = watch->asked;
        if (asked == tick || atomicCAS(&peers_.watch->asked, asked, tick) != asked) return true;
        if (is_well(now)) return true;
        watch->stop = 1;
        return false;
    }

    __device__ bool is_well(uint64_t now) {
        auto* const health = static_cast<unsigned volatile*>(peers_.health);
        if (*health != static_cast<unsigned>(Health::kWell)) return false;
        if (now - since_ < peers_.patience) return true;
        *health = static_cast<unsigned>(Health::kTimedOut);
        return false;
    }

    Peers const& peers_;
    unsigned inbox_, looks_ = 0;
    uint64_t since_ = 0;
};

}  // namespace opfuse::device
