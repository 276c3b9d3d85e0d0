// Hopper's copy engine (TMA), the barriers that it completes on, and what warp specialisation
// needs.
#pragma once
#include <cuda.h>

#include <cstdint>

#include "mma.cuh"

namespace opfuse::device {

// A barrier in shared memory flips its phase when all arrivals and all announced bytes are in.
__device__ inline void init_barrier(uint64_t* barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
                 "r"(arrivals)
                 : "memory");
}

// After init_barrier, before the copy engine uses the barriers; __syncthreads follows.
__device__ inline void publish_barriers() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ inline void arrive(uint64_t* barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier))
                 : "memory");
}

// Arrives, and announces bytes that copies will bring.
__device__ inline void arrive_expecting(uint64_t* barrier, int bytes) {
    asm volatile(
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
        "r"(bytes)
        : "memory");
}

// Waits for the end of the phase of this parity; a new barrier is in phase 0, after phase 1.
__device__ inline void wait(uint64_t* barrier, uint32_t parity) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n"
        "}" ::"r"(shared_address(barrier)),
        "r"(parity)
        : "memory");
}

// The same, for a phase that is over, and only once `value`, which is never negative, is computed:
// ptxas moves neither the computation behind this nor what follows before it.
__device__ inline void wait_after(float value, uint64_t* barrier, uint32_t parity) {
    asm volatile(
        "{\n"
        ".reg .pred done, never;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n"
        "setp.lt.f32 never, %2, 0f00000000;\n"
        "@never bra again;\n"
        "}" ::"r"(shared_address(barrier)),
        "r"(parity), "f"(value)
        : "memory");
}

// Fetches a map before it is needed.
__device__ inline void prefetch_map(CUtensorMap const& map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// Copies the map's box at (col, row, head, batch) to `to`; elements outside of the tensor are 0.
__device__ inline void copy_box(void* to, CUtensorMap const& map, uint64_t* barrier, int col,
                                int row, int head, int batch) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(shared_address(to)),
        "l"(&map), "r"(shared_address(barrier)), "r"(col), "r"(row), "r"(head), "r"(batch)
        : "memory");
}

// The same of a map of five axes, of which the box begins at (col, 0, row, head, batch).
__device__ inline void copy_groups(void* to, CUtensorMap const& map, uint64_t* barrier, int col,
                                   int row, int head, int batch) {
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4, %5, %6, %7}], [%2];" ::"r"(shared_address(to)),
        "l"(&map), "r"(shared_address(barrier)), "r"(col), "r"(0), "r"(row), "r"(head), "r"(batch)
        : "memory");
}

// Asks for the box to be in L2.
__device__ inline void prefetch_box(CUtensorMap const& map, int col, int row, int head, int batch) {
    asm volatile(
        "cp.async.bulk.prefetch.tensor.4d.L2.global.tile [%0, {%1, %2, %3, %4}];" ::"l"(&map),
        "r"(col), "r"(row), "r"(head), "r"(batch)
        : "memory");
}

// Named barriers: `threads` of the block meet; some may arrive without waiting.
__device__ inline void meet(int name, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(name), "r"(threads) : "memory");
}

__device__ inline void arrive_to_meet(int name, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(name), "r"(threads) : "memory");
}

// Threads meet, and all learn whether any of them says so.
__device__ inline bool meet_and_ask(int name, int threads, bool says) {
    uint32_t any;
    asm volatile(
        "{.reg .pred own, all; setp.ne.b32 own, %3, 0; bar.red.or.pred all, %1, %2, own; "
        "selp.u32 %0, 1, 0, all;}"
        : "=r"(any)
        : "r"(name), "r"(threads), "r"(static_cast<uint32_t>(says))
        : "memory");
    return any;
}

// Registers of each thread of this warp group from here on.
template <int kCount>
__device__ void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}

template <int kCount>
__device__ void leave_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}

}  // namespace opfuse::device
