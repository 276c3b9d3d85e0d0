#include "../core/op.h"

#include "../core/shapes.h"
#include "../device/dispatch.h"
#include "launch.h"

namespace opfuse {

struct AddLayerNorm {
    // x, residual, gamma, beta, bias? -> y, sum
    static constexpr OpTraits kTraits{"AddLayerNorm", "1", 4, 5, 2};

    float epsilon = 1e-5f;
    int64_t sum_is_read = 1;  // 0: sum may be left as it is

    static auto fields() {
        using Self = AddLayerNorm;
        return std::tuple(Field<Self, float>{"epsilon", &Self::epsilon},
                          Field<Self, int64_t>{"sum_is_read", &Self::sum_is_read});
    }
    void check() const {
        check_epsilon(epsilon);
        need_flag("sum_is_read", sum_is_read);
    }

    bool accepts(size_t input, std::span<DataType const> types) const {
        if (input == 0) return is_floating(types[0]);
        return input == 1 ? types[1] == types[0] : is_parameter_of(types[0], types[input]);
    }
    void types(std::span<DataType const> in, std::span<DataType> out) const {
        out[0] = out[1] = in[0];
    }
    void shapes(std::span<Shape const> in, std::span<Shape> out, DimMath&) const {
        need_same_shape("residual", in[1], in[0]);
        need_columns("gamma", in[2], in[0]);
        need_columns("beta", in[3], in[0]);
        if (in.size() > 4) need_columns("bias", in[4], in[0]);
        out[0] = out[1] = in[0];
    }

    cudaError_t run(Call const& call) const {
        Tensor const& x = call.inputs[0];
        AddLayerNormParameters parameters{parameter(call.inputs[2]), parameter(call.inputs[3]), {}};
        if (call.inputs.size() > 4) parameters.bias = parameter(call.inputs[4]);
        return with_type(x.type, [&]<class T>(std::type_identity<T>) {
            return add_layer_norm<T>(data<T>(call.outputs[0]), data<T>(call.outputs[1]), data<T>(x),
                                     data<T>(call.inputs[1]), parameters, x.rows(), x.cols(),
                                     epsilon, sum_is_read != 0, call.stream);
        });
    }
};

}  // namespace opfuse

OPFUSE_REGISTER_OP(opfuse::AddLayerNorm)
