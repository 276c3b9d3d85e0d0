// Activations by name, for kernels and for host code.
#pragma once
#include <optional>
#include <string_view>

namespace opfuse::device {

enum class Activation { kSilu, kGelu, kGeluTanh };

// The activation that an ONNX attribute names.
inline std::optional<Activation> find_activation(std::string_view name) {
    if (name == "silu") return Activation::kSilu;
    if (name == "gelu") return Activation::kGelu;
    if (name == "gelu_tanh") return Activation::kGeluTanh;
    return std::nullopt;
}

}  // namespace opfuse::device
