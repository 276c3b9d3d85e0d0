#include "tensor_map.h"

namespace opfuse {
namespace {

// [batch, heads, rows, columns] in boxes of [1, 1, box_rows, 64].
bool map(CUtensorMap& out, Heads const& from, bool is_half, int64_t batch, int heads, int rows,
         int columns, int box_rows) {
    auto const unsigned_of = [](int64_t value) { return static_cast<cuuint64_t>(value); };
    cuuint64_t const sizes[4] = {unsigned_of(columns), unsigned_of(rows), unsigned_of(heads),
                                 unsigned_of(batch)};
    cuuint64_t const strides[3] = {unsigned_of(2 * from.row), unsigned_of(2 * from.head),
                                   unsigned_of(2 * from.batch)};
    cuuint32_t const box[4] = {device::kBoxColumns, static_cast<cuuint32_t>(box_rows), 1, 1};
    return device::encode_map(out, from.data, is_half, 4, sizes, strides, box);
}

}  // namespace

bool map_attention(AttentionMaps& maps, Attention const& a, bool is_half, int rows, int keys) {
    return map(maps.q, a.q, is_half, a.batch, a.heads, a.queries, a.head_size, rows) &&
           map(maps.k, a.k, is_half, a.batch, a.kv_heads, a.keys, a.head_size, keys) &&
           map(maps.v, a.v, is_half, a.batch, a.kv_heads, a.keys, a.value_size, keys);
}

bool map_groups(AttentionMaps& maps, Attention const& a, bool is_half, int rows) {
    auto const unsigned_of = [](int64_t value) { return static_cast<cuuint64_t>(value); };
    int const group = a.heads / a.kv_heads;
    cuuint64_t const sizes[5] = {unsigned_of(a.head_size), unsigned_of(group),
                                 unsigned_of(a.queries), unsigned_of(a.kv_heads),
                                 unsigned_of(a.batch)};
    cuuint64_t const strides[4] = {unsigned_of(2 * a.q.head), unsigned_of(2 * a.q.row),
                                   unsigned_of(2 * a.q.head * group), unsigned_of(2 * a.q.batch)};
    cuuint32_t const box[5] = {device::kBoxColumns, static_cast<cuuint32_t>(group),
                               static_cast<cuuint32_t>(rows), 1, 1};
    return device::encode_map(maps.q, a.q.data, is_half, 5, sizes, strides, box);
}

bool map_mask(AttentionMaps& maps, Attention const& a, bool is_half, int rows) {
    // An axis of one element has a stride too, which is not used.
    int64_t const head = a.mask.head ? a.mask.head : a.mask.query;
    Heads const mask{const_cast<void*>(a.mask.data), a.mask.batch ? a.mask.batch : head, head,
                     a.mask.query};
    return map(maps.mask, mask, is_half, a.mask.batch ? a.batch : 1, a.mask.head ? a.heads : 1,
               a.queries, a.keys, rows);
}

}  // namespace opfuse
