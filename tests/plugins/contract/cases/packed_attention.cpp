#include "../case.h"

namespace contract {

static Dims const qkv{"batch", "seq", "96"};
static Dims const y{"batch", "seq", "1", "32"};

static Fields heads(int num_heads, int kv_num_heads) {
    return fields().add("num_heads", num_heads).add("kv_num_heads", kv_num_heads);
}

static RegisterCase const packed_attention({
    .op = "PackedAttention",
    .field_names = {"num_heads", "kv_num_heads", "scale", "causal", "window", "softcap",
                    "nan_guard", "slopes", "lengths"},
    .attributes = heads(8, 2)
                      .add("scale", 0.125f)
                      .add("causal", 1)
                      .add("window", 128)
                      .add("softcap", 30.f)
                      .add("nan_guard", 1),
    .serialised = {"num_heads=8", "kv_num_heads=2", "scale=0.125000", "causal=1", "window=128",
                   "softcap=30.000000", "nan_guard=1", "slopes=0", "lengths=0"},
    .uses = {{"x", {qkv}, {y}},
             {"xp", {qkv, {"batch", "1", "seq", "seq"}}, {y}},
             {"xp", {qkv, {"1", "seq"}}, {y}}},
    .refusals = {{heads(8, 3), "need a positive multiple"},
                 {fields().add("softcap", -1.f), "'softcap'"},
                 {fields().add("window", -1), "'window' is -1"},
                 {fields().add("layout", std::string("BSHD")), "unknown attribute 'layout'"}},
    .bad_shapes = {{"x", {{"batch", "seq", "97"}}, {{}}},
                   {"x", {{"batch", "1", "seq", "96"}}, {{}}},
                   {"xp", {qkv, {"1", "2", "seq", "seq"}}, {{}}},
                   {"xp", {qkv, {"1", "1", "1", "seq", "seq"}}, {{}}}},
});

}  // namespace contract
