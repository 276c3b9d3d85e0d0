// What a kernel is told of the other ranks: GPUs of this host whose memory it can write.
#pragma once
#include <vector_types.h>

#include <cstdint>

namespace opfuse::device {

inline constexpr int kMostRanks = 8;

// 16-byte vectors of one inbox.  A rank has two, which calls use in turn: see mail.cuh.
// 32 MiB: on two H100, 8192 rows (4096) fp16 take 287 us with 4 MiB, 221 with 16, 206 with 32, and
// 199 with 64.
inline constexpr int64_t kInboxVectors = int64_t{1} << 21;
inline constexpr int kInboxes = 2;

// Which inbox is next, and how many blocks have read that.
struct alignas(8) Turn {
    unsigned inbox, readers;
};

// How threads that wait learn that they shall not: `stop` is not 0; when the host was last asked.
struct alignas(8) Watch {
    unsigned stop, asked;
};

// How a communicator fares: a word in host memory, which kernels ask for while they wait.
enum class Health : unsigned { kWell = 0, kAborted = 1, kTimedOut = 2 };

struct Peers {
    int rank = 0, size = 1;
    Turn* turn = nullptr;             // of this rank
    Watch* watch = nullptr;           // likewise
    unsigned* health = nullptr;       // a Health
    uint64_t patience = 0;            // nanoseconds that a kernel waits for others
    uint4* inboxes[kMostRanks] = {};  // [kInboxes][kInboxVectors] of each rank, as seen from here
};

}  // namespace opfuse::device
