// Activations by name, for kernels and for host code.
#pragma once
#include <optional>
#include <string_view>

namespace opfuse::device {

enum class Activation { kNone, kRelu, kGelu, kGeluTanh, kQuickGelu, kSilu };

// The activation that an ONNX attribute names.
inline std::optional<Activation> find_activation(std::string_view name) {
    if (name == "none") return Activation::kNone;
    if (name == "relu") return Activation::kRelu;
    if (name == "gelu") return Activation::kGelu;
    if (name == "gelu_tanh") return Activation::kGeluTanh;
    if (name == "quick_gelu") return Activation::kQuickGelu;
    if (name == "silu") return Activation::kSilu;
    return std::nullopt;
}

// The same, of those that gate.
inline std::optional<Activation> find_gate(std::string_view name) {
    auto const found = find_activation(name);
    bool const gates =
        found == Activation::kSilu || found == Activation::kGelu || found == Activation::kGeluTanh;
    return gates ? found : std::nullopt;
}

}  // namespace opfuse::device
