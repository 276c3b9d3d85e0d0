#include "../core/op.h"

#include <algorithm>

#include "../core/shapes.h"
#include "../device/dispatch.h"
#include "launch.h"

namespace opfuse {
namespace {

// `mask` may have fewer axes than `scores`; each of its sizes is the scores' or 1.
void need_broadcast(Shape const& mask, Shape const& scores) {
    bool fits = mask.rank <= scores.rank;
    for (int i = 1; fits && i <= mask.rank; ++i) {
        Dim const a = mask.dims[mask.rank - i], b = scores.dims[scores.rank - i];
        fits = !a.known() || a.value == 1 || !b.known() || a.value == b.value;
    }
    if (!fits) throw std::invalid_argument("mask does not broadcast to the shape of scores");
}

// Merges an axis into the one outside of it where the mask runs on, or stands still, over both.
void add_axis(Mask& mask, int64_t size, int64_t step) {
    int const inner = mask.axes - 1;
    if (inner >= 0 && step == mask.steps[inner] * mask.sizes[inner]) {
        mask.sizes[inner] *= size;
        return;
    }
    mask.sizes[mask.axes] = size;
    mask.steps[mask.axes++] = step;
}

// Row-major steps of `given` over the axes of `scores` ahead of the keys.
Mask broadcast_mask(Tensor const& given, Tensor const& scores) {
    Mask mask;
    mask.values = parameter(given);
    int64_t step = given.rank > 0 ? given.cols() : 1;
    mask.one_key = step == 1 && scores.cols() != 1;
    for (int i = 2; i <= scores.rank; ++i) {
        int64_t const size = scores.dims[scores.rank - i];
        int64_t const own = i <= given.rank ? given.dims[given.rank - i] : 1;
        if (size > 1) add_axis(mask, size, own == 1 ? 0 : step);
        step *= own;
    }
    std::reverse(mask.sizes, mask.sizes + mask.axes);
    std::reverse(mask.steps, mask.steps + mask.axes);
    return mask;
}

}  // namespace

struct MaskedSoftmax {
    // scores [..., queries, keys], mask? -> probabilities
    static constexpr OpTraits kTraits{"MaskedSoftmax", "1", 1, 2, 1};

    float scale = 1.f;
    int64_t causal = 0;

    static auto fields() {
        return std::tuple(Field<MaskedSoftmax, float>{"scale", &MaskedSoftmax::scale},
                          Field<MaskedSoftmax, int64_t>{"causal", &MaskedSoftmax::causal});
    }
    void check() const {
        if (!std::isfinite(scale))
            throw std::invalid_argument("attribute 'scale' is " + std::to_string(scale) +
                                        ", need a finite number");
        if (causal != 0 && causal != 1)
            throw std::invalid_argument("attribute 'causal' is " + std::to_string(causal) +
                                        ", need 0 or 1");
    }

    bool accepts(size_t input, std::span<DataType const> types) const {
        return input == 0 ? is_floating(types[0]) : is_parameter_of(types[0], types[input]);
    }
    void types(std::span<DataType const> in, std::span<DataType> out) const { out[0] = in[0]; }
    void shapes(std::span<Shape const> in, std::span<Shape> out, DimMath&) const {
        if (in[0].rank < 2)
            throw std::invalid_argument("scores have " + std::to_string(in[0].rank) +
                                        " axes, need queries and keys");
        if (in.size() > 1) need_broadcast(in[1], in[0]);
        out[0] = in[0];
    }

    cudaError_t run(Call const& call) const {
        Tensor const& scores = call.inputs[0];
        Mask mask;
        if (call.inputs.size() > 1) mask = broadcast_mask(call.inputs[1], scores);
        return with_type(scores.type, [&]<class T>(std::type_identity<T>) {
            return masked_softmax<T>(data<T>(call.outputs[0]), data<T>(scores), mask, scale,
                                     causal != 0, scores.dims[scores.rank - 2], scores.rows(),
                                     scores.cols(), call.stream);
        });
    }
};

}  // namespace opfuse

OPFUSE_REGISTER_OP(opfuse::MaskedSoftmax)
