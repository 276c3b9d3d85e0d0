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

// A parameter holds one value a column; leading axes of size 1 do not matter.
inline void need_columns(char const* name, Shape const& parameter, Shape const& x) {
    need_last_axis(x);
    Dim const cols = x.dims[x.rank - 1];
    int64_t volume = 1;
    for (Dim const dim : parameter.span()) {
        if (!dim.known()) return;
        volume *= dim.value;
    }
    if (cols.known() && volume != cols.value)
        throw std::invalid_argument(std::string(name) + " has " + std::to_string(volume) +
                                    " elements, need " + std::to_string(cols.value));
}

}  // namespace opfuse
