#include "../core/op.h"

#include <limits>

#include "../core/shapes.h"
#include "../device/dispatch.h"
#include "../gemm_act/operands.h"

namespace opfuse {

struct GatedGemm {
    // x, weight (columns of gate, then of up), bias? -> y; the kernels are those of GemmAct
    static constexpr OpTraits kTraits{"GatedGemm", "1", 2, 3, 1};

    std::string activation = "silu";
    int64_t tactic = 0;  // of the kernels, 0 for their choice

    static auto fields() {
        using Self = GatedGemm;
        return std::tuple(Field<Self, std::string>{"activation", &Self::activation},
                          Field<Self, int64_t>{"tactic", &Self::tactic});
    }
    void check() const {
        if (!device::find_gate(activation))
            throw std::invalid_argument("attribute 'activation' is '" + activation +
                                        "', need silu, gelu, or gelu_tanh");
        need_range("tactic", tactic, 0, std::numeric_limits<int32_t>::max());
    }

    bool accepts(size_t input, std::span<DataType const> types) const {
        return input == 0 ? is_half(types[0]) : types[input] == types[0];
    }
    void types(std::span<DataType const> in, std::span<DataType> out) const { out[0] = in[0]; }
    void shapes(std::span<Shape const> in, std::span<Shape> out, DimMath& math) const {
        Dim const both = need_product(in[0], in[1], false);
        if (both.known() && both.value % 2 != 0)
            throw std::invalid_argument("weight has " + std::to_string(both.value) +
                                        " columns, need an even number");
        if (in.size() > 2) need_elements("bias", in[2], both);
        out[0] = in[0];
        out[0].dims[out[0].rank - 1] = math.apply(DimOp::kFloorDiv, both, math.constant(2));
    }

    cudaError_t run(Call const& call) const {
        auto const& in = call.inputs;
        Operands const operands{call.outputs[0], in[0], in[1], in.size() > 2 ? in[2].data : nullptr,
                                nullptr};
        return multiply(operands, product(), nullptr, call.stream);
    }
    std::vector<int32_t> tactics(std::span<Tensor const> in) const {
        return worth_timing(in[0], in[1], product());
    }

  private:
    Product product() const {
        return {WeightForm::kGated, *device::find_gate(activation), static_cast<int32_t>(tactic)};
    }
};

}  // namespace opfuse

OPFUSE_REGISTER_OP(opfuse::GatedGemm)
