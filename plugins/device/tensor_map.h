// What the host asks of Hopper: whether it is there, and maps of tensors for its copy engine.
#pragma once
#include <cuda.h>
#include <cuda_runtime.h>

namespace opfuse::device {

inline constexpr int kBoxColumns = 64;  // of 2 bytes: as wide as the widest swizzle

// Whether the current device runs what is compiled for sm_90a.
bool is_hopper();

// A map of a tensor of fp16 or bf16 in boxes with a swizzle of 128 bytes; sizes, in elements, and
// `box` from the innermost axis on, strides in bytes from the second on.  What L2 lacks it fetches
// 256 bytes at a time, or 128.  False where the driver has no such maps.  Works without a link
// against the driver.
bool encode_map(CUtensorMap& out, void const* data, bool is_half, int rank, cuuint64_t const* sizes,
                cuuint64_t const* strides, cuuint32_t const* box, int fetched_bytes = 256);

}  // namespace opfuse::device
