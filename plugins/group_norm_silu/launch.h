// What kernel.cuh launches, for host code.
#pragma once
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>

#include "../device/moments.h"
#include "../device/parameter.h"

namespace opfuse {

// x is [batch * num_groups, channels of a group, spatial], contiguous.
struct Groups {
    int64_t rows = 0;      // batch * num_groups
    int64_t channels = 0;  // of a group
    int64_t spatial = 0;   // elements of a channel
    int64_t num_groups = 1;

    int64_t cols() const { return channels * spatial; }
};

// Parts of a group that is too large for one cluster; each has at least 16384 elements, so that the
// statistics are a thousandth of the tensor's bytes.
inline int64_t parts_of(Groups const& groups) {
    return std::clamp<int64_t>((groups.cols() + 16383) / 16384, 1, 1024);
}

inline size_t workspace_bytes(Groups const& groups) {
    return groups.rows * parts_of(groups) * sizeof(device::Moments);
}

// `workspace`: workspace_bytes(groups), aligned to 4.
// T is float, __half, or __nv_bfloat16.  Launches on `stream`, and does not wait.
template <class T>
cudaError_t group_norm_silu(T* y, T const* x,                     // [rows, cols]
                            device::Parameter gamma,              // [num_groups * channels]
                            device::Parameter beta,               // [num_groups * channels]
                            Groups const& groups, float epsilon,  //
                            void* workspace, cudaStream_t stream);

}  // namespace opfuse
