// What kernel.cuh launches, for host code.
#pragma once
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>

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

// Statistics of a part of a group, as merged by Chan, Golub, and LeVeque (1979).
struct Moments {
    float mean, squares;  // sum of squared differences from that mean
};

// Of a group: the mean, and 1 / sqrt(variance + epsilon).
struct Normal {
    float mean, scale;
};

// Parts of a group that is too large for one cluster; each has at least 8192 elements, so that the
// statistics are a thousandth of the tensor's bytes.
inline int64_t parts_of(Groups const& groups) {
    return std::clamp<int64_t>((groups.cols() + 8191) / 8192, 1, 1024);
}

inline size_t workspace_bytes(Groups const& groups) {
    return groups.rows * (parts_of(groups) * sizeof(Moments) + sizeof(Normal));
}

// `workspace`: workspace_bytes(groups), aligned to 8.
// T is float, __half, or __nv_bfloat16.  Launches on `stream`, and does not wait.
template <class T>
cudaError_t group_norm_silu(T* y, T const* x,                     // [rows, cols]
                            device::Parameter gamma,              // [num_groups * channels]
                            device::Parameter beta,               // [num_groups * channels]
                            Groups const& groups, float epsilon,  //
                            void* workspace, cudaStream_t stream);

}  // namespace opfuse
