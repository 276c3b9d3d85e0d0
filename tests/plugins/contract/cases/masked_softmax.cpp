#include "../case.h"

namespace contract {

static Dims const scores{"batch", "12", "queries", "keys"};

static RegisterCase const masked_softmax({
    .op = "MaskedSoftmax",
    .field_names = {"scale", "causal"},
    .attributes = fields().add("scale", 0.125f).add("causal", 1),
    .serialised = {"scale=0.125000", "causal=1"},
    .uses = {{"x", {scores}, {scores}},
             {"xp", {scores, {"batch", "1", "queries", "keys"}}, {scores}},
             {"xp", {scores, {"keys"}}, {scores}},
             {"xp", {{"batch", "queries", "64"}, {"1", "1", "64"}}, {{"batch", "queries", "64"}}}},
    .refusals = {{fields().add("scale", std::string("x")), "'scale' is STRING, need FLOAT"},
                 {fields().add("scale", __builtin_inff()), "'scale' is inf"},
                 {fields().add("causal", 1.f), "'causal' is FLOAT, need INT"},
                 {fields().add("causal", 2), "'causal' is 2, need 0 or 1"}},
    .bad_shapes = {{"x", {{"64"}}, {{}}},
                   {"xp", {{"2", "8", "64"}, {"2", "8", "63"}}, {{}}},
                   {"xp", {{"2", "8", "64"}, {"3", "1", "64"}}, {{}}},
                   {"xp", {{"8", "64"}, {"2", "8", "64"}}, {{}}}},
});

}  // namespace contract
