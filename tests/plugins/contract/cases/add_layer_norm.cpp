#include "../case.h"

namespace contract {

static Dims const x{"batch", "seq", "64"};

static RegisterCase const add_layer_norm({
    .op = "AddLayerNorm",
    .field_names = {"epsilon"},
    .attributes = fields().add("epsilon", 0.125f),
    .serialised = {"epsilon=0.125000"},
    .uses = {{"xxpp", {x, x, {"64"}, {"64"}}, {x, x}},
             {"xxppp", {x, x, {"64"}, {"64"}, {"64"}}, {x, x}}},
    .refusals = {{fields().add("epsilon", std::string("x")), "'epsilon' is STRING, need FLOAT"}},
    .bad_shapes = {{"xxpp", {x, x, {"64"}, {"65"}}, {x, x}},
                   {"xxppp", {x, x, {"64"}, {"64"}, {"1"}}, {x, x}}},
});

}  // namespace contract
