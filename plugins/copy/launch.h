// What kernel.cu launches, for host code.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>
#include <vector>

namespace opfuse {

inline constexpr int kMaxAxes = 8;  // of a box

// `sizes` units of `unit` bytes on each axis, which lie apart by strides of bytes.
struct CopiedBox {
    void const* source;
    void* target;
    int unit;    // 1, 2, 4, 8, or 16; addresses and strides are multiples of it
    bool early;  // whether nothing that still runs on the stream writes the source, or has to do
                 // with the target
    int rank;
    int64_t sizes[kMaxAxes], source_strides[kMaxAxes], target_strides[kMaxAxes];
};

// Copies boxes of which none overlaps another one's target.  Launches on `stream`, and does not
// wait; a box of 2^31 units or more is cudaErrorInvalidValue.
cudaError_t copy(std::vector<CopiedBox> const& boxes, cudaStream_t stream);

}  // namespace opfuse
