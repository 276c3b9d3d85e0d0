#include "../case.h"

namespace contract {

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
