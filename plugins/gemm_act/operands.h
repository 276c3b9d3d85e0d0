// From an op's tensors to a kernel's arguments, for GemmAct and GatedGemm.
#pragma once
#include <vector>

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

struct Product {
    WeightForm form;
    device::Activation activation;
    int32_t tactic;
};

// Launches on `stream`, and does not wait.
cudaError_t multiply(Operands const& operands, Product const& product, cudaStream_t stream);

// Tactics that are worth timing for x and weight, but kChoose; none where a size is unknown.
std::vector<int32_t> worth_timing(Tensor const& x, Tensor const& weight, Product const& product);

}  // namespace opfuse
