#include "../case.h"

namespace contract {

// As TensorRT's ONNX parser sends a STRING: with its trailing NUL.
static std::string const gelu_with_nul("gelu\0", 5);

static RegisterCase const gated_act({
    .op = "GatedAct",
    .field_names = {"activation"},
    .attributes = fields().add("activation", gelu_with_nul),
    .serialised = {"activation=gelu"},
    .uses = {{"x", {{"batch", "seq", "128"}}, {{"batch", "seq", "64"}}},
             {"x", {{"rows", "cols"}}, {{"rows", "cols // 2"}}},
             {"xx", {{"rows", "cols"}, {"rows", "cols"}}, {{"rows", "cols"}}}},
    .refusals = {{fields().add("activation", 1.f), "'activation' is FLOAT, need STRING"},
                 {fields().add("activation", 1), "'activation' is INT, need STRING"},
                 {fields().add("activation", std::string("relu")), "'activation' is 'relu'"}},
    .bad_shapes = {{"x", {{"rows", "127"}}, {{}}}, {"xx", {{"rows", "64"}, {"rows", "32"}}, {{}}}},
});

}  // namespace contract
