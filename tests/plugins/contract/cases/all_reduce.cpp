#include <cstdint>

#include "../../../../plugins/all_reduce/tuning.h"
#include "../case.h"

namespace contract {

// Where NCCL was measured to be faster at a sum without a norm, and nowhere else.
using opfuse::tuning::nccl_bytes;
constexpr int64_t mebibyte = int64_t{1} << 20;
static_assert(nccl_bytes(1) == INT64_MAX && nccl_bytes(2) == INT64_MAX);
static_assert(nccl_bytes(3) == 32 * mebibyte && nccl_bytes(4) == 24 * mebibyte);
static_assert(nccl_bytes(5) == INT64_MAX && nccl_bytes(8) == INT64_MAX);

static Dims const x{"batch", "seq", "64"};

static RegisterCase const all_reduce({
    .op = "AllReduce",
    .field_names = {"group_size", "reduce_op"},
    .attributes = fields().add("group_size", 4),
    .serialised = {"group_size=4", "reduce_op=sum"},
    .uses = {{"x", {x}, {x}}, {"x", {{"64"}}, {{"64"}}}},
    .refusals = {{fields().add("group_size", 0), "'group_size' is 0, need 1 to 8"},
                 {fields().add("group_size", 9), "'group_size' is 9, need 1 to 8"},
                 {fields().add("reduce_op", std::string("max")), "'reduce_op' is 'max'"}},
    .bad_shapes = {{"xx", {x, x}, {x}}},
});

}  // namespace contract
