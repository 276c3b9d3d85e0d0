#include "../case.h"

namespace contract {

static Dims const q{"batch", "1", "queries", "64"};
static Dims const k{"batch", "1", "keys", "64"};
static Dims const v{"batch", "1", "keys", "32"};
static Dims const y{"batch", "1", "queries", "32"};

static Fields heads(int num_heads, int kv_num_heads) {
    return fields().add("num_heads", num_heads).add("kv_num_heads", kv_num_heads);
}

// As TensorRT's ONNX parser sends a STRING: with its trailing NUL.
static std::string const layout_with_nul("BHSD\0", 5);

static RegisterCase const flash_attention({
    .op = "FlashAttention",
    .field_names = {"num_heads", "kv_num_heads", "scale", "causal", "window", "softcap",
                    "nan_guard", "slopes", "lengths", "layout"},
    .attributes = heads(8, 2)
                      .add("scale", 0.125f)
                      .add("causal", 1)
                      .add("window", 128)
                      .add("softcap", 30.f)
                      .add("nan_guard", 1)
                      .add("layout", layout_with_nul),
    .serialised = {"num_heads=8", "kv_num_heads=2", "scale=0.125000", "causal=1", "window=128",
                   "softcap=30.000000", "nan_guard=1", "slopes=0", "lengths=0", "layout=BHSD"},
    .uses = {{"xxx", {q, k, v}, {y}},
             {"xxxp", {q, k, v, {"batch", "1", "queries", "keys"}}, {y}},
             {"xxxp", {q, k, v, {"1", "keys"}}, {y}}},
    .refusals = {{heads(8, 3), "need a positive multiple"},
                 {heads(8, 0), "need a positive multiple"},
                 {heads(0, 1), "need a positive multiple"},
                 {fields().add("softcap", -1.f), "'softcap'"},
                 {fields().add("scale", std::string("1")), "'scale' is STRING, need FLOAT"},
                 {fields().add("layout", std::string("SBHD")), "'layout' is 'SBHD'"},
                 {fields().add("layout", std::string("BSHD,BSHD,BSHD")), "'layout' is 'BSHD,"},
                 {fields().add("layout", std::string("BSHD;BSHD,BSHD,BSHD")), "'layout' is"},
                 {fields().add("window", -1), "'window' is -1"},
                 {fields().add("nan_guard", 2), "'nan_guard' is 2, need 0 or 1"},
                 {fields().add("lengths", 3), "'lengths' is 3, need 0, 1, or 2"},
                 {fields().add("sinks", 1), "unknown attribute 'sinks'"}},
    .bad_shapes = {{"xxx", {q, {"batch", "1", "keys", "32"}, v}, {{}}},
                   {"xxx", {{"batch", "2", "queries", "64"}, k, v}, {{}}},
                   {"xxx", {q, k, {"batch", "2", "keys", "64"}}, {{}}},
                   {"xxx", {{"batch", "queries", "64"}, k, v}, {{}}},
                   {"xxx", {q, {"batch", "1", "5", "64"}, {"batch", "1", "6", "64"}}, {{}}},
                   {"xxxp", {q, k, v, {"1", "2", "queries", "keys"}}, {{}}},
                   {"xxxp", {q, k, v, {"1", "1", "1", "queries", "keys"}}, {{}}}},
});

}  // namespace contract
