#include "../core/op.h"

#include <algorithm>

#include "../core/shapes.h"
#include "../device/dispatch.h"
#include "reduce.h"

namespace opfuse {

struct AllReduce {
    static constexpr OpTraits kTraits{"AllReduce", "1", 1, 1, 1};  // x -> y, the sum over ranks

    int64_t group_size = 1;
    std::string reduce_op = "sum";

    static auto fields() {
        return std::tuple(Field<AllReduce, int64_t>{"group_size", &AllReduce::group_size},
                          Field<AllReduce, std::string>{"reduce_op", &AllReduce::reduce_op});
    }
    void check() const {
        check_group_size(group_size);
        check_reduce_op(reduce_op);
    }

    bool accepts(size_t, std::span<DataType const> types) const { return is_floating(types[0]); }
    void types(std::span<DataType const> in, std::span<DataType> out) const { out[0] = in[0]; }
    void shapes(std::span<Shape const> in, std::span<Shape> out, DimMath&) const { out[0] = in[0]; }

    // Rows do not matter to a sum: x is cut into some that keep a block busy.
    cudaError_t run(Call const& call) const {
        Tensor const& x = call.inputs[0];
        return with_type(x.type, [&]<class T>(std::type_identity<T>) {
            int64_t const width = tuning::kSumLanes * 16 / sizeof(T);
            Reduction<T> reduction;
            reduction.x = data<T>(x);
            reduction.y = data<T>(call.outputs[0]);
            reduction.count = x.elements();
            reduction.cols = std::min(width, reduction.count);
            reduction.rows = (reduction.count + width - 1) / width;
            return reduce(reduction, group_size, call);
        });
    }
};

}  // namespace opfuse

OPFUSE_REGISTER_OP(opfuse::AllReduce)
