// Shape and type rules that several ops share.
#pragma once
#include <stdexcept>
#include <string>

#include "types.h"

namespace opfuse {

inline bool is_floating(DataType type) {
    return type == DataType::kFloat || type == DataType::kFloat16 || type == DataType::kBfloat16;
}

// gamma, beta, bias: the type of x, or fp32.
inline bool is_parameter_of(DataType x, DataType parameter) {
    return parameter == x || parameter == DataType::kFloat;
}

inline void need_same_shape(char const* name, Shape const& shape, Shape const& x) {
    bool same = shape.rank == x.rank;
    for (int i = 0; same && i < x.rank; ++i) {
        Dim const a = shape.dims[i];
        Dim const b = x.dims[i];
        same = !a.known() || !b.known() || a.value == b.value;
    }
    if (!same) throw std::invalid_argument(std::string(name) + " has not the shape of x");
}

inline void need_last_axis(Shape const& x) {
    if (x.rank < 1) throw std::invalid_argument("x is a scalar, need at least one axis");
}

// A parameter holds `count` values; axes of size 1 do not matter.
inline void need_elements(char const* name, Shape const& parameter, Dim count) {
    int64_t volume = 1;
    for (Dim const dim : parameter.span()) {
        if (!dim.known()) return;
        volume *= dim.value;
    }
    if (count.known() && volume != count.value)
        throw std::invalid_argument(std::string(name) + " has " + std::to_string(volume) +
                                    " elements, need " + std::to_string(count.value));
}

// A parameter holds one value a column.
inline void need_columns(char const* name, Shape const& parameter, Shape const& x) {
    need_last_axis(x);
    need_elements(name, parameter, x.dims[x.rank - 1]);
}

// How many elements of a head turn: all, or `rotary_dim` of `head_size`.
inline Dim need_turning(int64_t rotary_dim, int64_t head_size, Dim size) {
    Dim const turning = rotary_dim == 0 ? size : Dim{rotary_dim};
    int64_t const whole = head_size == 0 ? turning.value : head_size;
    if (size.known() && (size.value != whole || turning.value > whole || turning.value % 2 != 0))
        throw std::invalid_argument(std::to_string(turning.value) + " of the " +
                                    std::to_string(size.value) +
                                    " elements of a head do not turn in pairs");
    return turning;
}

// cos and sin: a row of `cols` for each head of x, one for all along axes of size 1.
inline void need_rows_for(char const* name, Shape const& rows, Shape const& x, Dim cols) {
    bool fits = rows.rank >= 1 && rows.rank <= x.rank;
    for (int i = 0; fits && i < rows.rank; ++i) {
        bool const last = i + 1 == rows.rank;
        Dim const have = rows.dims[i];
        Dim const want = last ? cols : x.dims[x.rank - rows.rank + i];
        if (!have.known() || !want.known()) continue;
        fits = have.value == want.value || (have.value == 1 && !last);
    }
    if (!fits) throw std::invalid_argument(std::string(name) + " does not broadcast to x");
}

inline void need_range(char const* name, int64_t value, int64_t low, int64_t high) {
    if (value < low || value > high)
        throw std::invalid_argument("attribute '" + std::string(name) + "' is " +
                                    std::to_string(value) + ", need " + std::to_string(low) +
                                    " to " + std::to_string(high));
}

inline void need_flag(char const* name, int64_t value) { need_range(name, value, 0, 1); }

inline void need_rotary_dim(int64_t value) {
    if (value < 0 || value % 2 != 0)
        throw std::invalid_argument("attribute 'rotary_dim' is " + std::to_string(value) +
                                    ", need an even number, or 0 for all of a head");
}

}  // namespace opfuse
