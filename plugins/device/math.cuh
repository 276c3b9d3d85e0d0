// Activations in fp32, in forms that keep their relative accuracy in the tails.
#pragma once
#include "activation.h"

namespace opfuse::device {

template <Activation kActivation>
__device__ float activate(float x) {
    if constexpr (kActivation == Activation::kSilu) {
        return x / (1.f + expf(-x));
    } else if constexpr (kActivation == Activation::kGelu) {
        return 0.5f * x * erfcf(-0.70710678f * x);  // 1 + erf(z) = erfc(-z), without cancellation
    } else {
        static_assert(kActivation == Activation::kGeluTanh);
        // 0.5 (1 + tanh(u)) = 1 / (1 + exp(-2u)), with u = sqrt(2/pi) (x + 0.044715 x^3)
        float const u2 = 1.5957691f * x * (1.f + 0.044715f * x * x);
        return x / (1.f + expf(-u2));
    }
}

}  // namespace opfuse::device
