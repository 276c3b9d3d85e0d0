#include "../case.h"

namespace contract {

// One head each of q, k, and v, which is what an op without attributes takes.
static Dims const qkv{"batch", "seq", "48"}, heads{"batch", "1", "seq", "16"};
static Dims const row{"batch", "1", "seq", "16"}, shared{"seq", "16"}, gamma{"16"};

static Fields given() {
    return fields()
        .add("interleaved", 1)
        .add("rotary_dim", 8)
        .add("head_size", 16)
        .add("num_heads", 6)
        .add("kv_num_heads", 2)
        .add("norm", 1)
        .add("bias", 1)
        .add("epsilon", 0.25f);
}

static RegisterCase const qk_norm_rope({
    .op = "QkNormRope",
    .field_names = {"interleaved", "rotary_dim", "head_size", "num_heads", "kv_num_heads", "norm",
                    "bias", "epsilon"},
    .attributes = given(),
    .serialised = {"interleaved=1", "rotary_dim=8", "head_size=16", "num_heads=6", "kv_num_heads=2",
                   "norm=1", "bias=1", "epsilon=0.250000"},
    .uses = {{"xpp", {qkv, row, row}, {heads, heads, heads}},
             {"xpp", {qkv, shared, gamma}, {heads, heads, heads}}},
    .refusals = {{fields().add("norm", 2), "'norm' is 2, need 0 to 1"},
                 {fields().add("num_heads", 0), "'num_heads' is 0"},
                 {fields().add("kv_num_heads", -1), "'kv_num_heads' is -1"},
                 {fields().add("rotary_dim", 3), "'rotary_dim' is 3, need an even number"},
                 {fields().add("epsilon", -1.f), "'epsilon'"},
                 {fields().add("position_ids", 8), "unknown attribute 'position_ids'"}},
    .bad_shapes = {{"xpp", {{"batch", "seq", "47"}, row, row}, {{}, {}, {}}},
                   {"xpp", {{"batch", "seq", "45"}, shared, gamma}, {{}, {}, {}}},
                   {"xpp", {{"seq", "48"}, shared, gamma}, {{}, {}, {}}},
                   {"xpp", {qkv, {"batch", "2", "seq", "16"}, row}, {{}, {}, {}}},
                   {"xpp", {qkv, shared, {"8"}}, {{}, {}, {}}},
                   {"xppp", {qkv, shared, gamma, qkv}, {{}, {}, {}}},
                   {"xppppp", {qkv, shared, gamma, gamma, gamma, {"48"}}, {{}, {}, {}}}},
});

}  // namespace contract
