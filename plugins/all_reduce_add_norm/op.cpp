#include "../core/op.h"

#include "../all_reduce/reduce.h"
#include "../core/shapes.h"
#include "../device/dispatch.h"

namespace opfuse {

struct AllReduceAddNorm {
    // x, residual, gamma, beta where norm is layer, bias? -> y, sum
    static constexpr OpTraits kTraits{"AllReduceAddNorm", "1", 3, 5, 2};

    std::string norm = "rms";
    float epsilon = 1e-5f;
    int64_t group_size = 1;
    std::string reduce_op = "sum";

    static auto fields() {
        using Op = AllReduceAddNorm;
        return std::tuple(Field<Op, std::string>{"norm", &Op::norm},
                          Field<Op, float>{"epsilon", &Op::epsilon},
                          Field<Op, int64_t>{"group_size", &Op::group_size},
                          Field<Op, std::string>{"reduce_op", &Op::reduce_op});
    }
    void check() const {
        if (norm != "rms" && norm != "layer")
            throw std::invalid_argument("attribute 'norm' is '" + norm + "', need rms or layer");
        check_epsilon(epsilon);
        check_group_size(group_size);
        check_reduce_op(reduce_op);
    }

    bool has_beta() const { return norm == "layer"; }

    bool accepts(size_t input, std::span<DataType const> types) const {
        if (input == 0) return is_floating(types[0]);
        if (input == 1) return types[1] == types[0];
        return input < (has_beta() ? 5 : 4) && is_parameter_of(types[0], types[input]);
    }
    void types(std::span<DataType const> in, std::span<DataType> out) const {
        out[0] = out[1] = in[0];
    }
    void shapes(std::span<Shape const> in, std::span<Shape> out, DimMath&) const {
        if (has_beta() && in.size() < 4)
            throw std::invalid_argument("beta is missing, which norm=layer needs");
        need_same_shape("residual", in[1], in[0]);
        need_columns("gamma", in[2], in[0]);
        if (has_beta()) need_columns("beta", in[3], in[0]);
        size_t const bias = has_beta() ? 4 : 3;
        if (in.size() > bias) need_columns("bias", in[bias], in[0]);
        out[0] = out[1] = in[0];
    }

    cudaError_t run(Call const& call) const {
        Tensor const& x = call.inputs[0];
        size_t const bias = has_beta() ? 4 : 3;
        return with_type(x.type, [&]<class T>(std::type_identity<T>) {
            Reduction<T> reduction;
            reduction.x = data<T>(x);
            reduction.residual = data<T>(call.inputs[1]);
            reduction.y = data<T>(call.outputs[0]);
            reduction.sum = data<T>(call.outputs[1]);
            reduction.gamma = parameter(call.inputs[2]);
            if (has_beta()) reduction.beta = parameter(call.inputs[3]);
            if (call.inputs.size() > bias) reduction.bias = parameter(call.inputs[bias]);
            reduction.rows = x.rows();
            reduction.cols = x.cols();
            reduction.count = x.elements();
            reduction.epsilon = epsilon;
            reduction.norm = has_beta() ? Norm::kLayer : Norm::kRms;
            return reduce(reduction, group_size, call);
        });
    }
};

}  // namespace opfuse

OPFUSE_REGISTER_OP(opfuse::AllReduceAddNorm)
