// The ranks of a process group, one process a GPU: how this one reaches the others.
//
// opfuse_comm_open and opfuse_comm_join (abi/communicator.cpp) make the communicator, once a
// process; all nodes of all engines share it.  A process may hold several copies of this library,
// since an engine can carry one: they find it by an environment variable.
#pragma once
#include <cuda_runtime_api.h>

#include <atomic>
#include <cstdint>

#include "../device/peers.h"
#include "nccl.h"

namespace opfuse {

// Which way sums go: by their size, or always one, as OPFUSE_ALLREDUCE says when it is opened.
enum class Way { kBySize, kOneShot, kTwoShot, kNccl };

struct Communicator {
    int rank = 0, size = 1, device = 0;
    Way way = Way::kBySize;
    bool has_peers = false;    // `peers` can be used
    device::Peers peers;       //
    Nccl nccl;                 // its functions, null where there is none
    std::atomic<void*> group;  // an ncclComm_t, or null
    void* memory = nullptr;    // turn and inboxes of this rank
    char transport[96] = "";   // "peer memory, NCCL 2.28.9"

    device::Health health() const;
};

// That of this process, or null.
Communicator const* communicator();

// ---- for the C functions, which throw std::runtime_error

inline constexpr int kCardBytes = 512;

void open_communicator(int rank, int size, int64_t timeout_ms, char const* nccl, void* card);
void join_communicator(void const* cards);  // [size][kCardBytes]
void close_communicator();
void abort_communicator() noexcept;
// -1 where there is none, else a Health.
int health_of_communicator() noexcept;
char const* transport_of_communicator() noexcept;

}  // namespace opfuse
