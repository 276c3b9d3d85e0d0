// What kernel.cuh launches, for host code.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

#include "../device/parameter.h"

namespace opfuse {

inline constexpr int kMaxMaskAxes = 8;

// An additive mask that broadcasts to scores [..., queries, keys].  Axes ahead of the keys, outer
// ones first, are merged where mask and scores both run on; `steps` is 0 where the mask broadcasts.
struct Mask {
    device::Parameter values;  // null where there is none
    int axes = 0;
    int64_t sizes[kMaxMaskAxes] = {};  // of the scores' axes
    int64_t steps[kMaxMaskAxes] = {};  // elements of the mask between two of an axis
    bool one_key = false;              // its last axis is 1 and broadcasts over the keys
};

// `causal`: query i of each [queries, keys] sees key j where j <= i + keys - queries.
// T is float, __half, or __nv_bfloat16.  Launches on `stream`, and does not wait.
template <class T>
cudaError_t masked_softmax(T* probabilities, T const* scores,  // [rows, keys]
                           Mask const& mask, float scale, bool causal, int64_t queries,
                           int64_t rows, int64_t keys, cudaStream_t stream);

}  // namespace opfuse
