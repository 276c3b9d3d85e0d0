#include "../case.h"

namespace contract {

static Dims const x{"batch", "seq", "64"};

static RegisterCase const add_layer_norm({
    .op = "AddLayerNorm",
    .field_names = {"epsilon", "sum_is_read"},
    .attributes = fields().add("epsilon", 0.125f).add("sum_is_read", 0),
    .serialised = {"epsilon=0.125000", "sum_is_read=0"},
    .uses = {{"xxpp", {x, x, {"64"}, {"64"}}, {x, x}},
             {"xxppp", {x, x, {"64"}, {"64"}, {"64"}}, {x, x}}},
    .refusals = {{fields().add("epsilon", std::string("x")), "'epsilon' is STRING, need FLOAT"},
                 {fields().add("sum_is_read", 2), "'sum_is_read' is 2, need 0 to 1"}},
    .bad_shapes = {{"xxpp", {x, x, {"64"}, {"65"}}, {x, x}},
                   {"xxppp", {x, x, {"64"}, {"64"}, {"1"}}, {x, x}}},
});

}  // namespace contract
