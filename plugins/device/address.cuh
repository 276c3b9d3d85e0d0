// Addresses as instructions on shared memory take them.
#pragma once
#include <cstdint>

namespace opfuse::device {

__device__ inline uint32_t shared_address(void const* data) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(data));
}

}  // namespace opfuse::device
