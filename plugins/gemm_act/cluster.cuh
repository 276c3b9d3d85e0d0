// Clusters of blocks, and copies between tensors in device memory and shared memory in two
// dimensions (TMA), to several blocks at once where asked.
#pragma once
#include "../device/tma.cuh"

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

// Stores to another block's shared memory and tells the barrier there of 16 bytes.
__device__ inline void store_in(uint32_t address, float const (&value)[4], uint32_t barrier) {
    asm volatile(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 "
        "[%0], {%1, %2, %3, %4}, [%5];" ::"r"(address),
        "f"(value[0]), "f"(value[1]), "f"(value[2]), "f"(value[3]), "r"(barrier)
        : "memory");
}

// Copies the map's box at (col, row) to `to`; elements outside of the tensor are 0.
__device__ inline void copy_tile(void* to, CUtensorMap const& map, uint64_t* barrier, int col,
                                 int row) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4}], [%2];" ::"r"(shared_address(to)),
        "l"(&map), "r"(shared_address(barrier)), "r"(col), "r"(row)
        : "memory");
}

// The same, to the same place in each block of `mask`, whose barriers are told.
__device__ inline void copy_tile_to(uint16_t mask, void* to, CUtensorMap const& map,
                                    uint64_t* barrier, int col, int row) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
        ".multicast::cluster [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(shared_address(to)),
        "l"(&map), "r"(shared_address(barrier)), "r"(col), "r"(row), "h"(mask)
        : "memory");
}

// copy_async() of what L2 gives up first.
__device__ inline void copy_async_once(void* to, void const* from, bool valid) {
    constexpr uint64_t kFirstOut = 0x12F0000000000000;  // a policy of L2
    asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, %3;" ::"r"(
                     shared_address(to)),
                 "l"(from), "r"(valid ? 16 : 0), "l"(kFirstOut)
                 : "memory");
}

// Arrives once all that this thread asked copy_async() for is there.
__device__ inline void arrive_behind_copies(uint64_t* barrier) {
    asm volatile(
        "cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(barrier))
        : "memory");
}

// Copies a box to the tensor, elements inside of it.
__device__ inline void store_tile(CUtensorMap const& map, void const* from, int col, int row) {
    asm volatile(
        "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(&map),
        "r"(shared_address(from)), "r"(col), "r"(row)
        : "memory");
}

__device__ inline void commit_stores() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// Waits until all but kPending of this thread's committed stores have read shared memory.
template <int kPending>
__device__ void wait_for_stores() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}

// What ordinary stores wrote to shared memory is seen by later copies.
__device__ inline void publish_to_copies() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Four 8x8 matrices, turned, from fragments; lane i gives the address of row i % 8 of matrix i / 8.
__device__ inline void store_turned(uint32_t address, uint32_t const (&from)[4]) {
    asm volatile(
        "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
        "r"(from[0]), "r"(from[1]), "r"(from[2]), "r"(from[3])
        : "memory");
}

__device__ inline void load_turned(uint32_t (&out)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(address)
                 : "memory");
}

// An 8x8 matrix turned, from fragment to fragment.
__device__ inline uint32_t turn(uint32_t matrix) {
    uint32_t turned;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(turned) : "r"(matrix));
    return turned;
}

}  // namespace opfuse::device
