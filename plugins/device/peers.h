// What a kernel is told of the other ranks: GPUs of this host whose memory it can write.
#pragma once
#include <vector_types.h>

#include <cstdint>

namespace opfuse::device {

inline constexpr int kMostRanks = 8;

// 16-byte vectors of one inbox.  A rank has two, which calls use in turn: see mail.cuh.
// 16 MiB: what a launch moves takes 40 us on NVLink of 400 GB/s, ten times its latency.
inline constexpr int64_t kInboxVectors = int64_t{1} << 20;
inline constexpr int kInboxes = 2;

// Which inbox is next, and how many blocks have read that.
struct alignas(8) Turn {
    unsigned inbox, readers;
};

// How a communicator fares: a word in host memory that kernels see while they wait.
enum class Health : unsigned { kWell = 0, kAborted = 1, kTimedOut = 2 };

struct Peers {
    int rank = 0, size = 1;
    Turn* turn = nullptr;             // of this rank
    unsigned* health = nullptr;       // a Health
    uint64_t patience = 0;            // nanoseconds that a kernel waits for others
    uint4* inboxes[kMostRanks] = {};  // [kInboxes][kInboxVectors] of each rank, as seen from here
};

}  // namespace opfuse::device
