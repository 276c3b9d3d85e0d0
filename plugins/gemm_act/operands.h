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
    bool has_residual = false;
};

// Launches on `stream`, and does not wait.  `workspace` has as many bytes as workspace_of() says,
// or is null.
cudaError_t multiply(Operands const& operands, Product const& product, void* workspace,
                     cudaStream_t stream);

// Bytes of scratch memory for x and weight at most; 0 where a size is unknown.
size_t workspace_of(Tensor const& x, Tensor const& weight, Product const& product);

// Tactics that are worth timing for x and weight, but kChoose; none where a size is unknown.
std::vector<int32_t> worth_timing(Tensor const& x, Tensor const& weight, Product const& product);

}  // namespace opfuse
