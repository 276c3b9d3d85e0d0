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

// [batch, heads, rows, columns] in boxes of [1, 1, box_rows, kBoxColumns].
bool map(CUtensorMap& out, Heads const& from, bool is_half, int64_t batch, int heads, int rows,
         int columns, int box_rows) {
    auto const encode = encoder();
    if (!encode) return false;
    auto const unsigned_of = [](int64_t value) { return static_cast<cuuint64_t>(value); };
    cuuint64_t const sizes[4] = {unsigned_of(columns), unsigned_of(rows), unsigned_of(heads),
                                 unsigned_of(batch)};
    cuuint64_t const strides[3] = {unsigned_of(2 * from.row), unsigned_of(2 * from.head),
                                   unsigned_of(2 * from.batch)};
    cuuint32_t const box[4] = {kBoxColumns, static_cast<cuuint32_t>(box_rows), 1, 1};
    cuuint32_t const steps[4] = {1, 1, 1, 1};
    auto const type = is_half ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    return encode(&out, type, 4, from.data, sizes, strides, box, steps,
                  CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                  CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                  CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

}  // namespace

bool map_attention(AttentionMaps& maps, Attention const& a, bool is_half, int rows, int keys) {
    return map(maps.q, a.q, is_half, a.batch, a.heads, a.queries, a.head_size, rows) &&
           map(maps.k, a.k, is_half, a.batch, a.kv_heads, a.keys, a.head_size, keys) &&
           map(maps.v, a.v, is_half, a.batch, a.kv_heads, a.keys, a.value_size, keys);
}

}  // namespace opfuse
