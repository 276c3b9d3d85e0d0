// What Hopper's copy engine has to know of a matrix product.
#pragma once
#include "../device/tensor_map.h"
#include "launch.h"

namespace opfuse {

struct GemmMaps {
    CUtensorMap x, weight, up, y, residual;
};

// x comes in boxes of `x_rows` rows by 64, the weight of `weight_cols` columns, a multiple of 8 up
// to 64, by 64 of depth, y and residual of `y_rows` by 64.  L2 fetches `weight_bytes` of the
// weight's memory at a time, 128 or 256.  False where the driver has no such maps.
bool map_gemm(GemmMaps& maps, Gemm const& gemm, bool is_half, int x_rows, int y_rows,
              int weight_bytes = 256, int weight_cols = 64);

}  // namespace opfuse
