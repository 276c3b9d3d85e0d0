// What Hopper's copy engine has to know of q, k, and v.
#pragma once
#include <cuda.h>

#include "launch.h"

namespace opfuse {

inline constexpr int kBoxColumns = 64;  // of 2 bytes: as wide as the widest swizzle

struct AttentionMaps {
    CUtensorMap q, k, v;  // boxes of kBoxColumns of `rows` queries, or of `keys` keys
};

// False where the driver has no such maps.  Works without a link against the driver.
bool map_attention(AttentionMaps& maps, Attention const& attention, bool is_half, int rows,
                   int keys);

}  // namespace opfuse
