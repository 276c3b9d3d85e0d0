// What an op gives for inputs whose sizes are numbers.
#pragma once
#include <span>
#include <string>
#include <vector>

#include "op.h"

namespace opfuse {

// Throws std::invalid_argument(what) where the condition does not hold.
void need(bool condition, std::string const& what);

// Type and shape of each output; throws where an input is not what the op takes.
std::vector<Tensor> infer(Op const& op, std::span<Tensor const> inputs, size_t outputs);

// Throws where `outputs` have other types or shapes than the op gives for `inputs`.
void need_layout(Op const& op, std::span<Tensor const> inputs, std::span<Tensor const> outputs);

}  // namespace opfuse
