#include "tensor_map.h"

namespace opfuse {
namespace {

// The driver's own function, which the runtime finds; null where the driver is older than Hopper.
auto encoder() {
    static auto const found = [] {
        void* function = nullptr;
        cudaDriverEntryPointQueryResult result{};
        cudaError_t const status = cudaGetDriverEntryPointByVersion(
            "cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &result);
        bool const usable = status == cudaSuccess && result == cudaDriverEntryPointSuccess;
        return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(usable ? function : nullptr);
    }();
    return found;
}

// [rows, columns] of 2 bytes, rows `stride` elements apart, in boxes of [box_rows, 64].
bool map(CUtensorMap& out, void const* data, bool is_half, int64_t rows, int64_t columns,
         int64_t stride, int box_rows) {
    auto const encode = encoder();
    if (!encode) return false;
    cuuint64_t const sizes[2] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
    cuuint64_t const strides[1] = {cuuint64_t{2} * stride};
    cuuint32_t const box[2] = {64, static_cast<cuuint32_t>(box_rows)};
    cuuint32_t const steps[2] = {1, 1};
    auto const type = is_half ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    return encode(&out, type, 2, const_cast<void*>(data), sizes, strides, box, steps,
                  CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                  CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                  CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

}  // namespace

bool map_gemm(GemmMaps& maps, Gemm const& g, bool is_half, int x_rows, int weight_box) {
    auto const map_weight = [&](CUtensorMap& out, int64_t first) {
        auto const* const data =
            static_cast<uint16_t const*>(g.weight) + (g.transposed ? first * g.depth : first);
        int64_t const stride = g.gated ? 2 * int64_t{g.cols} : g.cols;
        return g.transposed ? map(out, data, is_half, g.cols, g.depth, g.depth, weight_box)
                            : map(out, data, is_half, g.depth, g.cols, stride, weight_box);
    };
    return map(maps.x, g.x, is_half, g.rows, g.depth, g.depth, x_rows) &&
           map_weight(maps.weight, 0) && map_weight(maps.up, g.gated ? g.cols : 0) &&
           map(maps.y, g.y, is_half, g.rows, g.cols, g.cols, 64) &&
           map(maps.residual, g.residual ? g.residual : g.y, is_half, g.rows, g.cols, g.cols, 64);
}

}  // namespace opfuse
