#include "../case.h"

namespace contract {

static Dims const x{"batch", "320", "height", "width"};

static RegisterCase const group_norm_silu({
    .op = "GroupNormSilu",
    .field_names = {"num_groups", "epsilon"},
    .attributes = fields().add("num_groups", 32).add("epsilon", 0.25f),
    .serialised = {"num_groups=32", "epsilon=0.250000"},
    .uses = {{"xpp", {x, {"320"}, {"320"}}, {x}},
             {"xpp", {{"batch", "8", "length"}, {"8"}, {"1", "8"}}, {{"batch", "8", "length"}}}},
    .refusals = {{fields().add("epsilon", -1.f), "'epsilon'"},
                 {fields().add("num_groups", 2.f), "'num_groups' is FLOAT, need INT"},
                 {fields().add("num_groups", 0), "'num_groups' is 0, need at least 1"}},
    .bad_shapes = {{"xpp", {{"4", "320", "8"}, {"32"}, {"320"}}, {{}}},
                   {"xpp", {{"4", "320", "8"}, {"320"}, {"319"}}, {{}}},
                   {"xpp", {{"320"}, {"320"}, {"320"}}, {{}}}},
});

}  // namespace contract
