#include "../core/op.h"

#include <limits>

#include "../core/shapes.h"
#include "../device/dispatch.h"
#include "operands.h"

namespace opfuse {

struct GemmAct {
    // x, weight, bias?, residual? -> y; with `residual`, the last input is it
    static constexpr OpTraits kTraits{"GemmAct", "1", 2, 4, 1};

    std::string activation = "none";
    int64_t transposed = 0;  // weight is [columns, depth]
    int64_t residual = 0;
    int64_t tactic = 0;  // of the kernels, 0 for their choice

    static auto fields() {
        using Self = GemmAct;
        return std::tuple(Field<Self, std::string>{"activation", &Self::activation},
                          Field<Self, int64_t>{"transposed", &Self::transposed},
                          Field<Self, int64_t>{"residual", &Self::residual},
                          Field<Self, int64_t>{"tactic", &Self::tactic});
    }
    void check() const {
        if (!device::find_activation(activation))
            throw std::invalid_argument("attribute 'activation' is '" + activation +
                                        "', need none, relu, gelu, gelu_tanh, quick_gelu, or silu");
        need_flag("transposed", transposed);
        need_flag("residual", residual);
        need_range("tactic", tactic, 0, std::numeric_limits<int32_t>::max());
    }

    bool accepts(size_t input, std::span<DataType const> types) const {
        return input == 0 ? is_half(types[0]) : types[input] == types[0];
    }
    void types(std::span<DataType const> in, std::span<DataType> out) const { out[0] = in[0]; }
    void shapes(std::span<Shape const> in, std::span<Shape> out, DimMath&) const {
        if (in.size() == 4 && !residual)
            throw std::invalid_argument("4 inputs without the attribute 'residual'");
        if (in.size() == 2 && residual)
            throw std::invalid_argument("2 inputs with the attribute 'residual'");
        out[0] = in[0];
        out[0].dims[out[0].rank - 1] = need_product(in[0], in[1], transposed != 0);
        if (has_bias(in.size())) need_columns("bias", in[2], out[0]);
        if (residual) need_same_shape("residual", in.back(), out[0]);
    }

    cudaError_t run(Call const& call) const {
        auto const& in = call.inputs;
        Operands const operands{call.outputs[0], in[0], in[1],
                                has_bias(in.size()) ? in[2].data : nullptr,
                                residual ? in.back().data : nullptr};
        return multiply(operands, product(), call.workspace, call.stream);
    }
    size_t workspace(std::span<Tensor const> in) const {
        return workspace_of(in[0], in[1], product());
    }
    std::vector<int32_t> tactics(std::span<Tensor const> in) const {
        return worth_timing(in[0], in[1], product());
    }

  private:
    Product product() const {
        return {transposed ? WeightForm::kTransposed : WeightForm::kPlain,
                *device::find_activation(activation), static_cast<int32_t>(tactic), residual != 0};
    }
    bool has_bias(size_t inputs) const { return inputs == (residual ? 4 : 3); }
};

}  // namespace opfuse

OPFUSE_REGISTER_OP(opfuse::GemmAct)
