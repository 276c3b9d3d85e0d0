// From an op's tensors to a kernel's arguments, for GemmAct and GatedGemm.
#pragma once
#include "../core/types.h"
#include "launch.h"

namespace opfuse {

enum class WeightForm { kPlain, kTransposed, kGated };

struct Operands {
    Tensor const &y, &x, &weight;
    void const *bias, *residual;  // null where absent
};

inline bool is_half(DataType type) {
    return type == DataType::kFloat16 || type == DataType::kBfloat16;
}

// The columns of x weight.  Throws where known dimensions contradict.
Dim need_product(Shape const& x, Shape const& weight, bool transposed);

// Launches on `stream`, and does not wait.
cudaError_t multiply(Operands const& operands, WeightForm form, device::Activation activation,
                     cudaStream_t stream);

}  // namespace opfuse
