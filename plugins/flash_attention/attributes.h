// What FlashAttention and PackedAttention have in common.
#pragma once
#include <algorithm>
#include <limits>

#include "../core/op.h"
#include "../core/shapes.h"
#include "launch.h"

namespace opfuse {

inline void need(bool condition, std::string const& what) {
    if (!condition) throw std::invalid_argument(what);
}

// Where both are known, they are equal.
inline void need_equal(Dim a, Dim b, std::string const& what) {
    need(!a.known() || !b.known() || a.value == b.value, what);
}

// The mask's axes are the last ones of [batch, heads, queries, keys], or 1.
inline void need_mask(Shape const& mask, std::array<Dim, 4> const& space) {
    need(mask.rank <= 4, "mask has more than four axes");
    for (int i = 0; i < mask.rank; ++i)
        if (mask.dims[i].value != 1)
            need_equal(mask.dims[i], space[4 - mask.rank + i],
                       "mask does not broadcast to [batch, heads, queries, keys]");
}

inline bool fits_int(int64_t value) { return value <= std::numeric_limits<int32_t>::max(); }

inline bool aligned(void const* data, size_t bytes) {
    return reinterpret_cast<uintptr_t>(data) % bytes == 0;
}

// Strides with which a mask of up to four axes broadcasts to [batch, heads, queries, keys].
inline AttentionMask mask_of(Tensor const& tensor) {
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

struct AttentionAttributes {
    int64_t num_heads = 1;
    int64_t kv_num_heads = 1;
    float scale = 1.f;
    int64_t causal = 0;
    int64_t window = 0;
    float softcap = 0.f;
    int64_t nan_guard = 0;
    int64_t slopes = 0;   // an input behind the mask has them
    int64_t lengths = 0;  // 1: the last input has them; 2: it is there, and does not count

    template <class Self>
    static auto common_fields() {
        using Int = Field<Self, int64_t>;
        return std::tuple(
            Int{"num_heads", &Self::num_heads}, Int{"kv_num_heads", &Self::kv_num_heads},
            Field<Self, float>{"scale", &Self::scale}, Int{"causal", &Self::causal},
            Int{"window", &Self::window}, Field<Self, float>{"softcap", &Self::softcap},
            Int{"nan_guard", &Self::nan_guard}, Int{"slopes", &Self::slopes},
            Int{"lengths", &Self::lengths});
    }
    void check() const {
        need(kv_num_heads > 0 && num_heads > 0 && num_heads % kv_num_heads == 0 &&
                 fits_int(num_heads),
             "attributes 'num_heads' and 'kv_num_heads' are " + std::to_string(num_heads) +
                 " and " + std::to_string(kv_num_heads) + ", need a positive multiple");
        need(std::isfinite(scale), "attribute 'scale' is not finite");
        need(window >= 0, "attribute 'window' is " + std::to_string(window) +
                              ", need a number of keys, or 0 for all");
        need(nan_guard == 0 || nan_guard == 1,
             "attribute 'nan_guard' is " + std::to_string(nan_guard) + ", need 0 or 1");
        need(lengths >= 0 && lengths <= 2,
             "attribute 'lengths' is " + std::to_string(lengths) + ", need 0, 1, or 2");
        need(std::isfinite(softcap) && softcap >= 0.f, "attribute 'softcap' is " +
                                                           std::to_string(softcap) +
                                                           ", need a finite number of at least 0");
    }

    // Of the inputs, those from `mask` on are optional: the mask, the slopes, and the lengths, of
    // which attributes say whether the last two are there.
    size_t trailing() const { return (slopes ? 1 : 0) + (lengths ? 1 : 0); }
    template <class Input>
    std::span<Input const> mask_in(std::span<Input const> inputs, size_t mask) const {
        return inputs.size() > mask + trailing() ? inputs.subspan(mask, 1)
                                                 : std::span<Input const>{};
    }
    template <class Input>
    std::span<Input const> slopes_in(std::span<Input const> inputs) const {
        return slopes ? inputs.last(trailing()).first(1) : std::span<Input const>{};
    }
    template <class Input>
    std::span<Input const> lengths_in(std::span<Input const> inputs) const {
        return lengths ? inputs.last(1) : std::span<Input const>{};
    }
    // The lengths are integers and come last, the others are floating-point.
    static bool is_integer(DataType type) {
        return type == DataType::kInt32 || type == DataType::kInt64;
    }
    bool accepts_optional(size_t input, std::span<DataType const> types, size_t mask) const {
        bool const ended = input > mask && is_integer(types[input - 1]);
        bool const integer = is_integer(types[input]);
        if (ended || !integer) return !ended && is_parameter_of(types[0], types[input]);
        return lengths && input >= mask + (slopes ? 1 : 0);
    }
    void need_trailing(std::span<Shape const> inputs, size_t mask, Dim batch) const {
        need(inputs.size() >= mask + trailing(), "slopes or lengths are missing");
        for (Shape const& shape : slopes_in(inputs)) {
            need(shape.rank == 1, "slopes has not one axis");
            need_equal(shape.dims[0], {num_heads}, "slopes has not num_heads elements");
        }
        for (Shape const& shape : lengths_in(inputs)) {
            need(shape.rank == 1, "lengths has not one axis");
            if (shape.dims[0].value != 1)
                need_equal(shape.dims[0], batch, "lengths has not one element for each batch");
        }
    }

    // That of q, where the last input is what the attribute says.
    DataType result_type(std::span<DataType const> in) const {
        return is_integer(in.back()) == (lengths != 0) ? in[0] : DataType::kUnknown;
    }

    void fill_optional(Attention& a, std::span<Tensor const> inputs, size_t mask) const {
        for (Tensor const& tensor : mask_in(inputs, mask)) a.mask = mask_of(tensor);
        for (Tensor const& tensor : slopes_in(inputs))
            a.slopes = {tensor.data, tensor.type == DataType::kFloat};
        for (Tensor const& tensor : lengths_in(inputs))
            if (lengths == 1)
                a.lengths = {tensor.data, tensor.type == DataType::kInt64, tensor.dims[0] > 1};
    }

    // What is left to be filled in: y, q, k, v, mask, batch, queries, and keys.
    Attention attention(int64_t head_size, int64_t value_size) const {
        auto const narrow = [](int64_t value) { return static_cast<int>(value); };
        Attention a{};
        a.heads = narrow(num_heads), a.kv_heads = narrow(kv_num_heads);
        a.head_size = narrow(head_size), a.value_size = narrow(value_size);
        a.scale = scale, a.softcap = softcap;
        a.behind = window ? narrow(std::min<int64_t>(window - 1, kUnlimited)) : kUnlimited;
        a.ahead = causal ? 0 : a.behind;
        a.nan_guard = nan_guard != 0;
        return a;
    }
};

// In what widths the operands of a filled-in attention may be read and written.
inline void find_widths(Attention& a) {
    auto const in_steps = [](Heads const& heads, int64_t size, int64_t elements) {
        return size % elements == 0 && heads.row % elements == 0 && heads.head % elements == 0 &&
               heads.batch % elements == 0 && aligned(heads.data, 2 * elements);
    };
    a.in_vectors = in_steps(a.q, a.head_size, 8) && in_steps(a.k, a.head_size, 8) &&
                   in_steps(a.v, a.value_size, 8);
    a.y_in_pairs = in_steps(a.y, a.value_size, 2);
    a.y_in_vectors = in_steps(a.y, a.value_size, 8);
}

}  // namespace opfuse
