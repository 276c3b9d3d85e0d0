#include "../core/op.h"

#include <algorithm>
#include <limits>

#include "../core/shapes.h"
#include "../device/dispatch.h"
#include "launch.h"

namespace opfuse {
namespace {

using Axis = RopeShape::Axis;

// Rows of cos or sin from one index of x's `axis` to the next; 0 where they are broadcast along it.
// `rank` is that of x; axes that they lack are its first.
int64_t row_stride(Tensor const& tensor, int axis, int rank) {
    int const own = axis - (rank - tensor.rank);
    if (own < 0 || tensor.dims[own] == 1) return 0;
    int64_t stride = 1;
    for (int i = own + 1; i + 1 < tensor.rank; ++i) stride *= tensor.dims[i];
    return stride;
}

// Can one axis stand for both, the outer of which is `a`?
bool joins(Axis const& a, Axis const& b) {
    return a.cos_stride == b.cos_stride * b.size && a.sin_stride == b.sin_stride * b.size;
}

RopeShape shape_of(Tensor const& x, Tensor const& cos, Tensor const& sin) {
    RopeShape shape;
    shape.size = static_cast<int>(x.cols());
    shape.turning = static_cast<int>(cos.cols());
    for (int i = 0; i + 1 < x.rank; ++i) {
        if (x.dims[i] == 1) continue;
        Axis axis{x.dims[i], row_stride(cos, i, x.rank), row_stride(sin, i, x.rank)};
        Axis& last = shape.axes[std::max(shape.axis_count - 1, 0)];
        if (shape.axis_count > 0 && joins(last, axis)) {
            axis.size *= last.size;
            last = axis;
        } else {
            shape.axes[shape.axis_count++] = axis;
        }
    }
    return shape;
}

}  // namespace

struct Rope {
    static constexpr OpTraits kTraits{"Rope", "1", 3, 3, 1};  // x, cos, sin -> y

    int64_t interleaved = 0;
    int64_t rotary_dim = 0;  // elements of a head that turn; 0 for all
    int64_t head_size = 0;   // given where these are not all
    int64_t num_heads = 0;   // says what x is to people; nothing is computed from it

    static auto fields() {
        return std::tuple(Field<Rope, int64_t>{"interleaved", &Rope::interleaved},
                          Field<Rope, int64_t>{"rotary_dim", &Rope::rotary_dim},
                          Field<Rope, int64_t>{"head_size", &Rope::head_size},
                          Field<Rope, int64_t>{"num_heads", &Rope::num_heads});
    }
    void check() const {
        need_flag("interleaved", interleaved);
        need_rotary_dim(rotary_dim);
    }

    bool accepts(size_t input, std::span<DataType const> types) const {
        if (input == 0) return is_floating(types[0]);
        return is_parameter_of(types[0], types[input]);
    }
    void types(std::span<DataType const> in, std::span<DataType> out) const { out[0] = in[0]; }
    void shapes(std::span<Shape const> in, std::span<Shape> out, DimMath&) const {
        need_last_axis(in[0]);
        Dim const turning = need_turning(rotary_dim, head_size, in[0].dims[in[0].rank - 1]);
        need_rows_for("cos", in[1], in[0], turning);
        need_rows_for("sin", in[2], in[0], turning);
        out[0] = in[0];
    }

    cudaError_t run(Call const& call) const {
        Tensor const &x = call.inputs[0], &cos = call.inputs[1], &sin = call.inputs[2];
        if (x.cols() > std::numeric_limits<int32_t>::max()) return cudaErrorInvalidValue;
        return with_type(x.type, [&]<class T>(std::type_identity<T>) {
            return rope<T>(data<T>(call.outputs[0]), data<T>(x), parameter(cos), parameter(sin),
                           shape_of(x, cos, sin), interleaved != 0, call.stream);
        });
    }
};

}  // namespace opfuse

OPFUSE_REGISTER_OP(opfuse::Rope)
