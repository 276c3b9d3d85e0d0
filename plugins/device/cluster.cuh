// Clusters of blocks: who is who, and how they meet.
#pragma once
#include <cstdint>

#include "mma.cuh"

namespace opfuse::device {

__device__ inline int cluster_rank() {
    uint32_t rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return static_cast<int>(rank);
}

// Blocks of a cluster meet: all threads arrive, then wait.  What publish_barriers() said before is
// then known to all; other writes are not.
__device__ inline void arrive_at_cluster() {
    asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
}

__device__ inline void wait_for_cluster() {
    asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}

// The address that `address` of this block's shared memory has in block `rank`.
__device__ inline uint32_t address_in(uint32_t address, int rank) {
    uint32_t remote;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(address), "r"(rank));
    return remote;
}

__device__ inline void arrive_in(uint64_t* barrier, int rank) {
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(
                     address_in(shared_address(barrier), rank))
                 : "memory");
}

}  // namespace opfuse::device
