#include "../case.h"

namespace contract {

static RegisterCase const rms_norm({
    .op = "RmsNorm",
    .field_names = {"epsilon"},
    .attributes = fields().add("epsilon", 0.25f),
    .serialised = {"epsilon=0.250000"},
    .uses = {{"xp", {{"batch", "seq", "64"}, {"64"}}, {{"batch", "seq", "64"}}},
             {"xp", {{"rows", "cols"}, {"1", "cols"}}, {{"rows", "cols"}}},
             {"xp", {{"64"}, {"64"}}, {{"64"}}}},
    .refusals = {{fields().add("epsilon", std::string("1e-6")), "'epsilon' is STRING, need FLOAT"},
                 {fields().add("epsilon", -1.f), "'epsilon'"},
                 {fields().add("eps", 1e-6f), "unknown attribute 'eps'"}},
    .bad_shapes = {{"xp", {{"rows", "64"}, {"63"}}, {{}}}, {"xp", {{}, {"1"}}, {{}}}},
});

}  // namespace contract
