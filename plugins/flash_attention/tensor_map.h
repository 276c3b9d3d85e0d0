// What Hopper's copy engine has to know of q, k, and v.
#pragma once
#include "../device/tensor_map.h"
#include "launch.h"

namespace opfuse {

struct AttentionMaps {
    CUtensorMap q, k, v;  // boxes of device::kBoxColumns of `rows` queries, or of `keys` keys
    CUtensorMap mask;     // boxes of device::kBoxColumns keys of `rows` queries
};

// False where the driver has no such maps.
bool map_attention(AttentionMaps& maps, Attention const& attention, bool is_half, int rows,
                   int keys);

// Instead of the queries', boxes of `rows` queries of all heads that share a key/value head.
bool map_groups(AttentionMaps& maps, Attention const& attention, bool is_half, int rows);

// The mask's, which is_tile_mask() says to be possible; it has no heads or batches where they share
// it.
bool map_mask(AttentionMaps& maps, Attention const& attention, bool is_half, int rows);

}  // namespace opfuse
