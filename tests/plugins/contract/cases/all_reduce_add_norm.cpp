#include "../case.h"

namespace contract {

static Dims const x{"batch", "seq", "64"};

static RegisterCase const all_reduce_add_norm({
    .op = "AllReduceAddNorm",
    .field_names = {"norm", "epsilon", "group_size", "reduce_op"},
    .attributes =
        fields().add("norm", std::string("layer")).add("epsilon", 0.125f).add("group_size", 8),
    .serialised = {"norm=layer", "epsilon=0.125000", "group_size=8", "reduce_op=sum"},
    .uses = {{"xxp", {x, x, {"64"}}, {x, x}}, {"xxpp", {x, x, {"64"}, {"64"}}, {x, x}}},
    .refusals = {{fields().add("norm", std::string("group")), "'norm' is 'group'"},
                 {fields().add("epsilon", -1.f), "'epsilon' is -1"},
                 {fields().add("group_size", 0), "'group_size' is 0, need 1 to 8"}},
    .bad_shapes = {{"xxp", {x, {"rows", "64"}, {"64"}}, {x, x}},
                   {"xxp", {x, x, {"65"}}, {x, x}},
                   {"xxpp", {x, x, {"64"}, {"1"}}, {x, x}}},
});

}  // namespace contract
