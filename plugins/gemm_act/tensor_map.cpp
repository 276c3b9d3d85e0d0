#include "tensor_map.h"

namespace opfuse {
namespace {

// [rows, columns] of 2 bytes, rows `stride` elements apart, in boxes of [box_rows, box_columns].
// Of narrow boxes each row has 128 bytes of shared memory all the same.
bool map(CUtensorMap& out, void const* data, bool is_half, int64_t rows, int64_t columns,
         int64_t stride, int box_rows, int fetched_bytes = 256,
         int box_columns = device::kBoxColumns) {
    cuuint64_t const sizes[2] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
    cuuint64_t const strides[1] = {cuuint64_t{2} * stride};
    cuuint32_t const box[2] = {static_cast<cuuint32_t>(box_columns),
                               static_cast<cuuint32_t>(box_rows)};
    return device::encode_map(out, data, is_half, 2, sizes, strides, box, fetched_bytes);
}

}  // namespace

bool map_gemm(GemmMaps& maps, Gemm const& g, bool is_half, int x_rows, int y_rows, int weight_bytes,
              int weight_cols) {
    auto const map_weight = [&](CUtensorMap& out, int64_t first) {
        auto const* const data =
            static_cast<uint16_t const*>(g.weight) + (g.transposed ? first * g.depth : first);
        int64_t const stride = g.gated ? 2 * int64_t{g.cols} : g.cols;
        return g.transposed
                   ? map(out, data, is_half, g.cols, g.depth, g.depth, weight_cols, weight_bytes)
                   : map(out, data, is_half, g.depth, g.cols, stride, 64, weight_bytes,
                         weight_cols);
    };
    return map(maps.x, g.x, is_half, g.rows, g.depth, g.depth, x_rows) &&
           map_weight(maps.weight, 0) && map_weight(maps.up, g.gated ? g.cols : 0) &&
           map(maps.y, g.y, is_half, g.rows, g.cols, g.cols, y_rows) &&
           map(maps.residual, g.residual ? g.residual : g.y, is_half, g.rows, g.cols, g.cols,
               y_rows);
}

}  // namespace opfuse
