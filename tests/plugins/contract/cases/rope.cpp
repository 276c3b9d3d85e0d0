#include "../case.h"

namespace contract {

static Dims const x{"batch", "heads", "seq", "16"};

static RegisterCase const rope({
    .op = "Rope",
    .field_names = {"interleaved", "rotary_dim", "head_size", "num_heads"},
    .attributes = fields()
                      .add("interleaved", 1)
                      .add("rotary_dim", 8)
                      .add("head_size", 16)
                      .add("num_heads", 3),
    .serialised = {"interleaved=1", "rotary_dim=8", "head_size=16", "num_heads=3"},
    .uses = {{"xpp", {x, {"batch", "1", "seq", "16"}, {"batch", "1", "seq", "16"}}, {x}},
             {"xpp", {x, {"seq", "16"}, {"1", "1", "16"}}, {x}},
             {"xpp", {{"seq", "cols"}, {"seq", "cols"}, {"cols"}}, {{"seq", "cols"}}}},
    .refusals = {{fields().add("rotary_dim", 7), "'rotary_dim' is 7, need an even number"},
                 {fields().add("rotary_dim", -2), "'rotary_dim' is -2"},
                 {fields().add("interleaved", 2), "'interleaved' is 2, need 0 to 1"},
                 {fields().add("num_heads", 1.f), "'num_heads' is FLOAT, need INT"}},
    .bad_shapes = {{"xpp", {x, {"seq", "8"}, {"seq", "16"}}, {{}}},
                   {"xpp", {x, {"seq", "16"}, {"seq", "1"}}, {{}}},
                   {"xpp", {{"7", "16"}, {"6", "16"}, {"16"}}, {{}}},
                   {"xpp", {{"seq", "16"}, {"1", "seq", "16"}, {"16"}}, {{}}},
                   {"xpp", {{"seq", "15"}, {"15"}, {"15"}}, {{}}}},
});

}  // namespace contract
