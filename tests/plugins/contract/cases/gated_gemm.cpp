#include "../case.h"

namespace contract {

static Dims const x{"batch", "seq", "48"}, weight{"48", "64"}, y{"batch", "seq", "32"};

// As TensorRT's ONNX parser sends a STRING: with its trailing NUL.
static std::string const gelu_with_nul("gelu\0", 5);

static RegisterCase const gated_gemm({
    .op = "GatedGemm",
    .field_names = {"activation", "tactic"},
    .attributes = fields().add("activation", gelu_with_nul).add("tactic", 3),
    .serialised = {"activation=gelu", "tactic=3"},
    .uses = {{"xx", {x, weight}, {y}},
             {"xxx", {x, weight, {"64"}}, {y}},
             {"xx", {{"rows", "48"}, {"48", "cols"}}, {{"rows", "cols // 2"}}}},
    .refusals = {{fields().add("activation", 1), "'activation' is INT, need STRING"},
                 {fields().add("activation", std::string("relu")), "'activation' is 'relu'"}},
    .bad_shapes = {{"xx", {x, {"48", "63"}}, {{}}},
                   {"xx", {x, {"64", "48"}}, {{}}},
                   {"xx", {x, {"48"}}, {{}}},
                   {"xxx", {x, weight, {"32"}}, {{}}}},
    .has_tactics = true,
    .takes_float = false,
});

}  // namespace contract
