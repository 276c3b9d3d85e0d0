#include "../case.h"

namespace contract {

static Dims const x{"batch", "seq", "48"}, weight{"48", "64"}, y{"batch", "seq", "64"};

// As TensorRT's ONNX parser sends a STRING: with its trailing NUL.
static std::string const relu_with_nul("relu\0", 5);

// Without attributes, as these are used, there is no residual.
static RegisterCase const gemm_act({
    .op = "GemmAct",
    .field_names = {"activation", "transposed", "residual", "tactic"},
    .attributes = fields()
                      .add("activation", relu_with_nul)
                      .add("transposed", 1)
                      .add("residual", 1)
                      .add("tactic", 3),
    .serialised = {"activation=relu", "transposed=1", "residual=1", "tactic=3"},
    .uses = {{"xx", {x, weight}, {y}},
             {"xxx", {x, weight, {"64"}}, {y}},
             {"xx", {{"rows", "depth"}, {"depth", "cols"}}, {{"rows", "cols"}}}},
    .refusals = {{fields().add("activation", 1), "'activation' is INT, need STRING"},
                 {fields().add("activation", std::string("tanh")), "'activation' is 'tanh'"},
                 {fields().add("transposed", 2), "'transposed' is 2, need 0 to 1"},
                 {fields().add("residual", -1), "'residual' is -1, need 0 to 1"},
                 {fields().add("tactic", -1), "'tactic' is -1, need 0 to"},
                 {fields().add("alpha", 1.f), "unknown attribute 'alpha'"}},
    .bad_shapes = {{"xx", {x, {"64", "48"}}, {{}}},
                   {"xx", {x, {"2", "48", "64"}}, {{}}},
                   {"xxx", {x, weight, {"48"}}, {{}}},
                   {"xxxx", {x, weight, {"64"}, y}, {{}}}},
    .has_tactics = true,
    .takes_float = false,
});

}  // namespace contract
