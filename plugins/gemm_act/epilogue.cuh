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

// x / (1 + 2^v).  Two special functions a number: with one division for four numbers an epilogue
// has three times the instructions, and a product at the power limit pays for each (gated
// 8192x4096x14336: 2743 us, 2901).
__device__ inline void sigmoid_products(float (&x)[4], float const (&v)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) x[i] *= reciprocal_fast(1.f + exp2_fast(v[i]));
}

// x Phi(x) of h = x / 2, as max(x, 0) - |x| Phi(-|x|), with |x| Phi(-|x|) = |h| 2^q(|h|): a fit
// that is off by 1e-5 of the result, or of 6e-5 where that is less.  Beyond |h| = 6 it stays below
// 1e-28.  h + |h| is the maximum, but NaN for -infinity, as torch has it.
__device__ inline float gelu_of_half(float h) {
    float const z = fminf(fabsf(h), 6.f);
    float q = 0.00195606099f;
    q = fmaf(q, z, -0.0231859498f);
    q = fmaf(q, z, 0.125265658f);
    q = fmaf(q, z, -0.422440648f);
    q = fmaf(q, z, -1.83765244f);
    q = fmaf(q, z, -2.30189896f);
    q = fmaf(q, z, -1.25452498e-05f);
    return fmaf(-z, exp2_fast(q), h + fabsf(h));
}

// activation(x + bias).
template <Activation kActivation>
__device__ void activate_four(float (&x)[4], float const (&bias)[4]) {
    using enum Activation;
    constexpr float kLog2E = 1.44269504f;
    float v[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        if constexpr (kActivation == kGelu) {
            x[i] = gelu_of_half(fmaf(x[i], 0.5f, 0.5f * bias[i]));
            continue;
        }
        x[i] += bias[i];
        if constexpr (kActivation == kRelu) x[i] = max_or_nan(x[i], 0.f);
        if constexpr (kActivation == kGeluTanh)
            v[i] = x[i] * fmaf(-0.0713548163f * kLog2E, x[i] * x[i], -1.5957691216f * kLog2E);
        if constexpr (kActivation == kQuickGelu) v[i] = -1.702f * kLog2E * x[i];
        if constexpr (kActivation == kSilu) v[i] = -kLog2E * x[i];
    }
    if constexpr (kActivation == kGeluTanh || kActivation == kQuickGelu || kActivation == kSilu)
        sigmoid_products(x, v);
}

__device__ inline void activate_as(Activation activation, float (&x)[4], float const (&bias)[4]) {
    using enum Activation;
    switch (activation) {
    case kNone: return activate_four<kNone>(x, bias);
    case kRelu: return activate_four<kRelu>(x, bias);
    case kGelu: return activate_four<kGelu>(x, bias);
    case kGeluTanh: return activate_four<kGeluTanh>(x, bias);
    case kQuickGelu: return activate_four<kQuickGelu>(x, bias);
    case kSilu: return activate_four<kSilu>(x, bias);
    }
}

__device__ inline float activate_as(Activation activation, float x, float bias) {
    float four[4] = {x, x, x, x};
    float const biases[4] = {bias, bias, bias, bias};
    activate_as(activation, four, biases);
    return four[0];
}

}  // namespace opfuse::device
