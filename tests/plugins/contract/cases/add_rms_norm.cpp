#include "../case.h"

namespace contract {

static RegisterCase const add_rms_norm({
    .op = "AddRmsNorm",
    .field_names = {"epsilon"},
    .attributes = fields().add("epsilon", 0.5f),
    .serialised = {"epsilon=0.500000"},
    .uses = {{"xxp",
              {{"batch", "seq", "64"}, {"batch", "seq", "64"}, {"64"}},
              {{"batch", "seq", "64"}, {"batch", "seq", "64"}}}},
    .refusals = {{fields().add("epsilon", std::string("x")), "'epsilon' is STRING, need FLOAT"}},
    .bad_shapes = {{"xxp", {{"rows", "64"}, {"rows", "32"}, {"64"}}, {{}, {}}},
                   {"xxp", {{"rows", "64"}, {"64"}, {"64"}}, {{}, {}}},
                   {"xxp", {{"rows", "64"}, {"rows", "64"}, {"1"}}, {{}, {}}}},
});

}  // namespace contract
