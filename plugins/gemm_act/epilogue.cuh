// Activations of fp32 sums whose results are rounded to 16 bits, within 1e-5 of their size.
#pragma once
#include "../device/activation.h"
#include "../device/mma.cuh"
#include "../device/vec.cuh"

namespace opfuse::device {

__device__ inline float reciprocal_fast(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Where one is NaN, so is the result.
__device__ inline float max_or_nan(float a, float b) {
    float y;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
    return y;
}

// x / (1 + e^-u).  Two special functions a number: with one division for four numbers an epilogue
// has three times the instructions, and a product at the power limit pays for each (gated
// 8192x4096x14336: 2743 us, 2901).
__device__ inline void sigmoid_products(float (&x)[4], float const (&u)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) x[i] *= reciprocal_fast(1.f + exp2_fast(-1.44269504f * u[i]));
}

// x Phi(x), with Phi(-z) = 2^p(z): a fit of relative error 6e-6 up to z = 5.6, beyond which x
// Phi(-z) is less than 1e-7; from z = 13 on p is below -130, so that it is 0.
__device__ inline float gelu_fast(float x) {
    float const z = fminf(fabsf(x), 16.f);
    float p = -1.8094993e-06f;
    p = fmaf(p, z, 6.1170751e-05f);
    p = fmaf(p, z, -0.00092773908f);
    p = fmaf(p, z, 0.0084990841f);
    p = fmaf(p, z, -0.053946149f);
    p = fmaf(p, z, -0.45847455f);
    p = fmaf(p, z, -1.1512483f);
    p = fmaf(p, z, -0.99999541f);
    float const tail = exp2_fast(p);
    return x * (x > 0.f ? 1.f - tail : tail);
}

template <Activation kActivation>
__device__ void activate_four(float (&x)[4]) {
    float u[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        if constexpr (kActivation == Activation::kRelu) x[i] = max_or_nan(x[i], 0.f);
        if constexpr (kActivation == Activation::kGelu) x[i] = gelu_fast(x[i]);
        if constexpr (kActivation == Activation::kGeluTanh)
            u[i] = x[i] * fmaf(0.0713548163f, x[i] * x[i], 1.5957691216f);
        if constexpr (kActivation == Activation::kQuickGelu) u[i] = 1.702f * x[i];
        if constexpr (kActivation == Activation::kSilu) u[i] = x[i];
    }
    using enum Activation;
    if constexpr (kActivation == kGeluTanh || kActivation == kQuickGelu || kActivation == kSilu)
        sigmoid_products(x, u);
}

__device__ inline void activate_as(Activation activation, float (&x)[4]) {
    using enum Activation;
    switch (activation) {
    case kNone: return activate_four<kNone>(x);
    case kRelu: return activate_four<kRelu>(x);
    case kGelu: return activate_four<kGelu>(x);
    case kGeluTanh: return activate_four<kGeluTanh>(x);
    case kQuickGelu: return activate_four<kQuickGelu>(x);
    case kSilu: return activate_four<kSilu>(x);
    }
}

__device__ inline float activate_as(Activation activation, float x) {
    float four[4] = {x, x, x, x};
    activate_as(activation, four);
    return four[0];
}

}  // namespace opfuse::device
