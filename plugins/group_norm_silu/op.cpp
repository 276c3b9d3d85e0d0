#include "../core/op.h"

#include "../core/shapes.h"
#include "../device/dispatch.h"
#include "launch.h"

namespace opfuse {

struct GroupNormSilu {
    // x [batch, channels, ...], gamma, beta -> y
    static constexpr OpTraits kTraits{"GroupNormSilu", "1", 3, 3, 1};

    int64_t num_groups = 1;
    float epsilon = 1e-5f;

    static auto fields() {
        return std::tuple(Field<GroupNormSilu, int64_t>{"num_groups", &GroupNormSilu::num_groups},
                          Field<GroupNormSilu, float>{"epsilon", &GroupNormSilu::epsilon});
    }
    void check() const {
        check_epsilon(epsilon);
        if (num_groups < 1)
            throw std::invalid_argument("attribute 'num_groups' is " + std::to_string(num_groups) +
                                        ", need at least 1");
    }

    bool accepts(size_t input, std::span<DataType const> types) const {
        return input == 0 ? is_floating(types[0]) : is_parameter_of(types[0], types[input]);
    }
    void types(std::span<DataType const> in, std::span<DataType> out) const { out[0] = in[0]; }
    void shapes(std::span<Shape const> in, std::span<Shape> out, DimMath&) const {
        if (in[0].rank < 2)
            throw std::invalid_argument("x has " + std::to_string(in[0].rank) +
                                        " axes, need batch and channels");
        Dim const channels = in[0].dims[1];
        if (channels.known() && channels.value % num_groups != 0)
            throw std::invalid_argument(std::to_string(channels.value) +
                                        " channels do not divide by " + std::to_string(num_groups) +
                                        " groups");
        need_elements("gamma", in[1], channels);
        need_elements("beta", in[2], channels);
        out[0] = in[0];
    }

    Groups groups(Tensor const& x) const {
        Groups groups{x.dims[0] * num_groups, x.dims[1] / num_groups, 1, num_groups};
        for (int i = 2; i < x.rank; ++i) groups.spatial *= x.dims[i];
        return groups;
    }
    size_t workspace(std::span<Tensor const> inputs) const {
        return workspace_bytes(groups(inputs[0]));
    }
    cudaError_t run(Call const& call) const {
        Tensor const& x = call.inputs[0];
        return with_type(x.type, [&]<class T>(std::type_identity<T>) {
            return group_norm_silu<T>(data<T>(call.outputs[0]), data<T>(x),
                                      parameter(call.inputs[1]), parameter(call.inputs[2]),
                                      groups(x), epsilon, call.workspace, call.stream);
        });
    }
};

}  // namespace opfuse

OPFUSE_REGISTER_OP(opfuse::GroupNormSilu)
