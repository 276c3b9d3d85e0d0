#include "../core/op.h"

#include <limits>

#include "../core/shapes.h"
#include "../device/dispatch.h"
#include "launch.h"

namespace opfuse {
namespace {

constexpr size_t kMask = 3;  // the input's index

void need(bool condition, std::string const& what) {
    if (!condition) throw std::invalid_argument(what);
}

// Where both are known, they are equal.
void need_equal(Dim a, Dim b, std::string const& what) {
    need(!a.known() || !b.known() || a.value == b.value, what);
}

bool fits_int(int64_t value) { return value <= std::numeric_limits<int32_t>::max(); }

bool aligned(void const* data, size_t bytes) {
    return reinterpret_cast<uintptr_t>(data) % bytes == 0;
}

// Strides with which a mask of up to four axes broadcasts to [batch, heads, queries, keys].
AttentionMask mask_of(Tensor const& tensor) {
    AttentionMask mask{tensor.data, tensor.type == DataType::kFloat};
    int64_t* const strides[4] = {&mask.batch, &mask.head, &mask.query, &mask.key};
    int64_t stride = 1;
    for (int i = tensor.rank - 1; i >= 0; --i) {
        int64_t& own = *strides[4 - tensor.rank + i];
        own = tensor.dims[i] == 1 ? 0 : stride;
        stride *= tensor.dims[i];
    }
    bool const even = tensor.rank > 0 && tensor.dims[tensor.rank - 1] % 2 == 0;
    mask.in_pairs = mask.key == 1 && even && aligned(mask.data, mask.is_float ? 8 : 4);
    return mask;
}

}  // namespace

struct FlashAttention {
    // q, k, v, mask? -> y; see fusions/attention.py
    static constexpr OpTraits kTraits{"FlashAttention", "1", 3, 4, 1};

    int64_t num_heads = 1;
    int64_t kv_num_heads = 1;
    float scale = 1.f;
    int64_t causal = 0;
    float softcap = 0.f;
    int64_t nan_guard = 0;
    std::string layout = "BHSD";

    static auto fields() {
        using Self = FlashAttention;
        return std::tuple(Field<Self, int64_t>{"num_heads", &Self::num_heads},
                          Field<Self, int64_t>{"kv_num_heads", &Self::kv_num_heads},
                          Field<Self, float>{"scale", &Self::scale},
                          Field<Self, int64_t>{"causal", &Self::causal},
                          Field<Self, float>{"softcap", &Self::softcap},
                          Field<Self, int64_t>{"nan_guard", &Self::nan_guard},
                          Field<Self, std::string>{"layout", &Self::layout});
    }
    void check() const {
        need(kv_num_heads > 0 && num_heads > 0 && num_heads % kv_num_heads == 0 &&
                 fits_int(num_heads),
             "attributes 'num_heads' and 'kv_num_heads' are " + std::to_string(num_heads) +
                 " and " + std::to_string(kv_num_heads) + ", need a positive multiple");
        need(std::isfinite(scale), "attribute 'scale' is not finite");
        need(std::isfinite(softcap) && softcap >= 0.f, "attribute 'softcap' is " +
                                                           std::to_string(softcap) +
                                                           ", need a finite number of at least 0");
        need(layout == "BHSD", "attribute 'layout' is '" + layout + "', need BHSD");
    }

    bool accepts(size_t input, std::span<DataType const> types) const {
        if (input == 0) return is_floating(types[0]);
        return input == kMask ? is_parameter_of(types[0], types[input]) : types[input] == types[0];
    }
    void types(std::span<DataType const> in, std::span<DataType> out) const { out[0] = in[0]; }
    void shapes(std::span<Shape const> in, std::span<Shape> out, DimMath&) const {
        Shape const &q = in[0], &k = in[1], &v = in[2];
        need(q.rank == 4 && k.rank == 4 && v.rank == 4, "q, k, or v has not four axes");
        need_equal(q.dims[1], {num_heads}, "q has not num_heads heads");
        need_equal(k.dims[1], {kv_num_heads}, "k has not kv_num_heads heads");
        need_equal(v.dims[1], {kv_num_heads}, "v has not kv_num_heads heads");
        need_equal(k.dims[0], q.dims[0], "k has not the batch of q");
        need_equal(v.dims[0], q.dims[0], "v has not the batch of q");
        need_equal(k.dims[3], q.dims[3], "k has not the head size of q");
        need_equal(v.dims[2], k.dims[2], "v has not the keys of k");
        if (in.size() > kMask) need_mask(in[kMask], {q.dims[0], {num_heads}, q.dims[2], k.dims[2]});
        out[0] = q;
        out[0].dims[3] = v.dims[3];
    }

    size_t workspace(std::span<Tensor const> inputs) const {
        if (inputs[0].type == DataType::kFloat) return 0;
        return attention_workspace(inputs[1].dims[2], inputs[0].dims[3], inputs[2].dims[3]);
    }

    cudaError_t run(Call const& call) const {
        Tensor const &q = call.inputs[0], &k = call.inputs[1], &v = call.inputs[2];
        Tensor const& y = call.outputs[0];
        for (int64_t const size : {q.dims[2], k.dims[2], q.dims[3], v.dims[3]})
            if (!fits_int(size)) return cudaErrorInvalidValue;
        size_t const bytes = y.rows() * y.cols() * (y.type == DataType::kFloat ? 4 : 2);
        if (bytes == 0) return cudaSuccess;
        if (k.dims[2] == 0) return cudaMemsetAsync(y.data, 0, bytes, call.stream);
        return with_type(y.type, [&]<class T>(std::type_identity<T>) {
            return attend<T>(attention(call), call.workspace, call.stream);
        });
    }

  private:
    // The mask's axes are the last ones of [batch, heads, queries, keys], or 1.
    static void need_mask(Shape const& mask, std::array<Dim, 4> const& space) {
        need(mask.rank <= 4, "mask has more than four axes");
        for (int i = 0; i < mask.rank; ++i)
            if (mask.dims[i].value != 1)
                need_equal(mask.dims[i], space[4 - mask.rank + i],
                           "mask does not broadcast to [batch, heads, queries, keys]");
    }

    Attention attention(Call const& call) const {
        Tensor const &q = call.inputs[0], &k = call.inputs[1], &v = call.inputs[2];
        auto const narrow = [](int64_t value) { return static_cast<int>(value); };
        Attention a{};
        a.y = call.outputs[0].data, a.q = q.data, a.k = k.data, a.v = v.data;
        a.batch = q.dims[0];
        a.heads = narrow(num_heads), a.kv_heads = narrow(kv_num_heads);
        a.queries = narrow(q.dims[2]), a.keys = narrow(k.dims[2]);
        a.head_size = narrow(q.dims[3]), a.value_size = narrow(v.dims[3]);
        a.scale = scale, a.softcap = softcap;
        a.causal = causal != 0, a.nan_guard = nan_guard != 0;
        if (call.inputs.size() > kMask) a.mask = mask_of(call.inputs[kMask]);
        a.in_vectors = a.head_size % 8 == 0 && a.value_size % 8 == 0 && aligned(q.data, 16) &&
                       aligned(k.data, 16) && aligned(v.data, 16);
        a.y_in_pairs = a.value_size % 2 == 0 && aligned(a.y, 4);
        return a;
    }
};

}  // namespace opfuse

OPFUSE_REGISTER_OP(opfuse::FlashAttention)
