// Launches that may start before the kernel ahead of them has ended, in clusters where asked.
#pragma once
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <limits>

#include "tuning.h"

namespace opfuse::device {

// ---- in kernels

// Programmatic dependent launch: blocks of this grid may be resident before the previous grid has
// ended.  Nothing that it may have written is read, and nothing that it may read is written, ahead
// of this call; it returns once the previous grid has ended and its writes are visible.
__device__ inline void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The next grid may take the room that this one leaves; its own wait keeps the order.
__device__ inline void let_next_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Both, in the order that is faster; or the wait alone.
__device__ inline void wait_in_turn(bool lets_next_start = true) {
    bool const early = lets_next_start && gridDim.x <= tuning::kBlocksToLetIn;
    if (early) let_next_start();
    wait_for_previous();
    if (lets_next_start && !early) let_next_start();
}

// The same value, computed here: nvcc would move the arithmetic to where the value is used, which
// may be behind wait_for_previous.
__device__ inline float settled(float value) {
    asm volatile("" : "+f"(value));
    return value;
}
__device__ inline unsigned settled(unsigned value) {
    asm volatile("" : "+r"(value));
    return value;
}
template <class T>
__device__ T* settled(T* address) {
    asm volatile("" : "+l"(address));
    __builtin_assume(__isGlobal(address));
    return address;
}

// Asks for the line at `address` to be in L2.  Allowed ahead of wait_for_previous: L2 is where all
// multiprocessors meet, so that what is written later replaces what was fetched early.
__device__ inline void prefetch(void const* address) {
#if __CUDA_ARCH__ >= 900
    asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
#endif
}

// ---- on the host

// What the current device and the code compiled for it can do.
struct Machine {
    int capability = 0;       // 90 for sm_90: the lesser of the device's and the kernels'
    int multiprocessors = 0;  //
    int shared_bytes = 0;     // of a block, at most
    int shared_of_all = 0;    // of the blocks that a multiprocessor holds, in bytes
    int shared_reserved = 0;  // of those, the system's for each block

    bool has_clusters() const { return capability >= 90; }
};

// Of a kernel that does not call wait_for_previous: it starts when the one ahead has ended.
inline constexpr Machine kInOrder{};

template <int = 0>
__global__ void probe_kernel() {}

inline cudaError_t query_machine(int device, Machine& machine) {
    int major = 0, minor = 0;
    cudaFuncAttributes probe{};
    cudaError_t status = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    if (status == cudaSuccess)
        status = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    if (status == cudaSuccess)
        status = cudaDeviceGetAttribute(&machine.multiprocessors, cudaDevAttrMultiProcessorCount,
                                        device);
    if (status == cudaSuccess)
        status = cudaDeviceGetAttribute(&machine.shared_bytes,
                                        cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    if (status == cudaSuccess)
        status = cudaDeviceGetAttribute(&machine.shared_of_all,
                                        cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
    if (status == cudaSuccess)
        status = cudaDeviceGetAttribute(&machine.shared_reserved,
                                        cudaDevAttrReservedSharedMemoryPerBlock, device);
    if (status == cudaSuccess) status = cudaFuncGetAttributes(&probe, probe_kernel<>);
    // PTX of an older architecture lacks wait_for_previous, whatever device it is compiled for.
    machine.capability = std::min(10 * major + minor, probe.ptxVersion);
    return status;
}

// The current device's, asked for once a thread.
inline cudaError_t current_machine(Machine& machine) {
    thread_local int known = -1;
    thread_local Machine kept;
    int device = 0;
    cudaError_t status = cudaGetDevice(&device);
    if (status == cudaSuccess && device != known) {
        status = query_machine(device, kept);
        if (status == cudaSuccess) known = device;
    }
    machine = kept;
    return status;
}

struct Grid {
    int64_t blocks = 0;
    dim3 threads{1};
    int cluster = 1;  // blocks of a cluster
    size_t shared_bytes = 0;
    bool overlaps = true;  // may start while the kernel ahead ends
    int most_share = 0;    // see shared_to_spread
    int launches = 2;      // that a multiprocessor has room for
};

// Shared memory that a block asks for, and does not use, so that a multiprocessor has room for
// `share` of them and no more.
inline size_t shared_of_share(Machine const& machine, int64_t share) {
    constexpr int kGrain = 256;  // what sizes are rounded up to, at most
    return machine.shared_of_all / (share + 1) + kGrain - machine.shared_reserved;
}

// What a grid with `most_share` asks for: room for a multiprocessor's share of its launches; 0
// where that is more than `most_share`.  Without it, where launches let the next one in early,
// blocks of many wait at once, new ones come where old ones end, and up to 4 of the 64 blocks of a
// launch meet on one multiprocessor.
inline size_t shared_to_spread(Machine const& machine, Grid const& grid) {
    int64_t const share =
        (grid.launches * grid.blocks + machine.multiprocessors - 1) / machine.multiprocessors;
    if (machine.capability < 90 || share > grid.most_share) return 0;
    return shared_of_share(machine, share);
}

// Kernels walk over what is left where there is more than `blocks`.
inline unsigned grid_size(Grid const& grid) {
    int64_t const most = std::numeric_limits<int32_t>::max() / grid.cluster * grid.cluster;
    return static_cast<unsigned>(std::min<int64_t>(grid.blocks, most));
}

template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), Machine const& machine, Grid const& grid,
                   cudaStream_t stream, Arguments... arguments) {
    size_t shared_bytes = grid.shared_bytes, most_bytes = shared_bytes;
    if (grid.most_share > 0) {
        shared_bytes = shared_to_spread(machine, grid);
        most_bytes = shared_of_share(machine, 1);  // the same for all launches of the kernel
    }
    if (shared_bytes > 0) {
        cudaError_t const status = cudaFuncSetAttribute(
            kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(most_bytes));
        if (status != cudaSuccess) return status;
    }
    cudaLaunchAttribute attributes[2]{};
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(grid_size(grid));
    config.blockDim = grid.threads;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    config.attrs = attributes;
    if (machine.capability >= 90 && grid.overlaps) {
        attributes[config.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attributes[config.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
    }
    if (grid.cluster > 1) {
        attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
        attributes[config.numAttrs++].val.clusterDim = {static_cast<unsigned>(grid.cluster), 1, 1};
    }
    return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

}  // namespace opfuse::device
