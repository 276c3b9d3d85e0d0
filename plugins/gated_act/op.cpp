#include "../core/op.h"

#include "../core/shapes.h"
#include "../device/dispatch.h"
#include "launch.h"

namespace opfuse {

struct GatedAct {
    // gate_up (the halves [gate | up] of the last axis), or gate and up -> y
    static constexpr OpTraits kTraits{"GatedAct", "1", 1, 2, 1};

    std::string activation = "silu";

    static auto fields() {
        return std::tuple(Field<GatedAct, std::string>{"activation", &GatedAct::activation});
    }
    void check() const {
        if (!device::find_gate(activation))
            throw std::invalid_argument("attribute 'activation' is '" + activation +
                                        "', need silu, gelu, or gelu_tanh");
    }

    bool accepts(size_t input, std::span<DataType const> types) const {
        return input == 0 ? is_floating(types[0]) : types[input] == types[0];
    }
    void types(std::span<DataType const> in, std::span<DataType> out) const { out[0] = in[0]; }
    void shapes(std::span<Shape const> in, std::span<Shape> out, DimMath& math) const {
        need_last_axis(in[0]);
        out[0] = in[0];
        if (in.size() == 2) return need_same_shape("up", in[1], in[0]);
        Dim& cols = out[0].dims[out[0].rank - 1];
        if (cols.known() && cols.value % 2 != 0)
            throw std::invalid_argument("gate_up has " + std::to_string(cols.value) +
                                        " columns, need an even number");
        cols = math.apply(DimOp::kFloorDiv, cols, math.constant(2));
    }

    cudaError_t run(Call const& call) const {
        Tensor const& y = call.outputs[0];
        bool const packed = call.inputs.size() == 1;
        return with_type(y.type, [&]<class T>(std::type_identity<T>) {
            T const* gate = data<T>(call.inputs[0]);
            T const* up = packed ? gate + y.cols() : data<T>(call.inputs[1]);
            int64_t const stride = packed ? 2 * y.cols() : y.cols();
            return gated_act<T>(data<T>(y), gate, up, stride, y.rows(), y.cols(),
                                *device::find_gate(activation), call.stream);
        });
    }
};

}  // namespace opfuse

OPFUSE_REGISTER_OP(opfuse::GatedAct)
