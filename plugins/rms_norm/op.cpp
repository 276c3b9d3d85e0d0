#include "../core/op.h"

#include "../core/shapes.h"
#include "../device/dispatch.h"
#include "launch.h"

namespace opfuse {

struct RmsNorm {
    static constexpr OpTraits kTraits{"RmsNorm", "1", 2, 2, 1};  // x, gamma -> y

    float epsilon = 1e-5f;

    static auto fields() { return std::tuple(Field<RmsNorm, float>{"epsilon", &RmsNorm::epsilon}); }
    void check() const { check_epsilon(epsilon); }

    bool accepts(size_t input, std::span<DataType const> types) const {
        return input == 0 ? is_floating(types[0]) : is_parameter_of(types[0], types[input]);
    }
    void types(std::span<DataType const> in, std::span<DataType> out) const { out[0] = in[0]; }
    void shapes(std::span<Shape const> in, std::span<Shape> out, DimMath&) const {
        need_columns("gamma", in[1], in[0]);
        out[0] = in[0];
    }

    cudaError_t run(Call const& call) const {
        Tensor const& x = call.inputs[0];
        return with_type(x.type, [&]<class T>(std::type_identity<T>) {
            return rms_norm<T>(data<T>(call.outputs[0]), data<T>(x), parameter(call.inputs[1]),
                               x.rows(), x.cols(), epsilon, call.stream);
        });
    }
};

}  // namespace opfuse

OPFUSE_REGISTER_OP(opfuse::RmsNorm)
