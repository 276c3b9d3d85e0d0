#include "../case.h"

namespace contract {

static Dims const x{"batch", "seq", "64"};

static RegisterCase const all_gather({
    .op = "AllGather",
    .field_names = {"axis", "group_size"},
    .attributes = fields().add("axis", -1).add("group_size", 2),
    .serialised = {"axis=-1", "group_size=2"},
    .uses = {{"x", {x}, {x}}, {"x", {{"64"}}, {{"64"}}}},
    .refusals = {{fields().add("group_size", 0), "'group_size' is 0, need 1 to 8"},
                 {fields().add("axis", 8), "'axis' is 8, need -8 to 7"}},
    .bad_shapes = {{"x", {{}}, {{}}}, {"xx", {x, x}, {x}}},
});

}  // namespace contract
