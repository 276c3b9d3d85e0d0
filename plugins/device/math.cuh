// Activations in fp32, in forms that keep their relative accuracy in the tails.
#pragma once
#include "activation.h"

namespace opfuse::device {

// e^x within |x| + 2 units in the last place; 0 below 2^-126.
__device__ inline float fast_exp(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * 1.4426950408889634f));
    return y;
}

// x / (1 + e^-u); exact to fp32 for float, and far below one rounding of the other types.
template <class T>
__device__ float weigh(float x, float u) {
    if constexpr (sizeof(T) == sizeof(float))
        return x / (1.f + expf(-u));
    else
        return __fdividef(x, 1.f + fast_exp(-u));
}

// Of a value that is then rounded to T.
template <Activation kActivation, class T>
__device__ float activate(float x) {
    if constexpr (kActivation == Activation::kSilu) {
        return weigh<T>(x, x);
    } else if constexpr (kActivation == Activation::kGelu) {
        return 0.5f * x * erfcf(-0.70710678f * x);  // 1 + erf(z) = erfc(-z), without cancellation
    } else {
        static_assert(kActivation == Activation::kGeluTanh);
        // 0.5 (1 + tanh(u)) = 1 / (1 + exp(-2u)), with u = sqrt(2/pi) (x + 0.044715 x^3)
        return weigh<T>(x, 1.5957691f * x * (1.f + 0.044715f * x * x));
    }
}

}  // namespace opfuse::device
