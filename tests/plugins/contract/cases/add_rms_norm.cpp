#include "../case.h"

namespace contract {

static RegisterCase const add_rms_norm({
    .op = "AddRmsNorm",
    .field_names = {"epsilon", "sum_is_read"},
    .attributes = fields().add("epsilon", 0.5f).add("sum_is_read", 0),
    .serialised = {"epsilon=0.500000", "sum_is_read=0"},
    .uses = {{"xxp",
              {{"batch", "seq", "64"}, {"batch", "seq", "64"}, {"64"}},
              {{"batch", "seq", "64"}, {"batch", "seq", "64"}}}},
    .refusals = {{fields().add("epsilon", std::string("x")), "'epsilon' is STRING, need FLOAT"},
                 {fields().add("sum_is_read", 2), "'sum_is_read' is 2, need 0 to 1"}},
    .bad_shapes = {{"xxp", {{"rows", "64"}, {"rows", "32"}, {"64"}}, {{}, {}}},
                   {"xxp", {{"rows", "64"}, {"64"}, {"64"}}, {{}, {}}},
                   {"xxp", {{"rows", "64"}, {"rows", "64"}, {"1"}}, {{}, {}}}},
});

}  // namespace contract
