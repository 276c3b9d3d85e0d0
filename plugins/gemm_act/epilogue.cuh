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

// 1 / x of numbers whose product is in range, by one division: four times as many would be what
// an epilogue waits for.
__device__ inline void invert_four(float (&x)[4]) {
    float const front = x[0] * x[1], back = x[2] * x[3];
    float const all = reciprocal_fast(front * back);
    float const of_front = all * back, of_back = all * front;
    float const first = x[0], third = x[2];
    x[0] = of_front * x[1], x[1] = of_front * first;
    x[2] = of_back * x[3], x[3] = of_back * third;
}

// x / (1 + e^-u), with u of the sign of x.  With e = e^-|u|, which does not overflow, that is
// x / (1 + e), or x e / (1 + e) where x is negative.
__device__ inline void sigmoid_products(float (&x)[4], float const (&u)[4]) {
    float inverse[4], top[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        float const e = exp2_fast(-1.44269504f * fabsf(u[i]));
        inverse[i] = 1.f + fminf(e, 1.f);  // NaN stays with its own
        top[i] = x[i];
        if (x[i] < 0.f) top[i] *= e;
    }
    invert_four(inverse);
#pragma unroll
    for (int i = 0; i < 4; ++i) x[i] = top[i] * inverse[i];
}

// x Phi(x), with erfc(z) = t p(t) e^(-z^2), t = 1 / (1 + 0.44 z), for z = |x| / sqrt(2): a fit of
// relative error 5.3e-6 up to z = 11, beyond which e^(-z^2) is 0 in fp32.
__device__ inline void gelu_four(float (&x)[4]) {
    float t[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) t[i] = 1.f + 0.44f * fminf(0.70710678f * fabsf(x[i]), 16.f);
    invert_four(t);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        float p = -0.07305163145f;  // half of the fit
        p = fmaf(p, t[i], 0.17532279924f);
        p = fmaf(p, t[i], 0.02036939753f);
        p = fmaf(p, t[i], 0.13179108299f);
        p = fmaf(p, t[i], 0.12128532487f);
        p = fmaf(p, t[i], 0.12428045205f);
        float const z = 0.84932180f * x[i];  // e^(-x^2 / 2) = 2^(-z^2)
        float const tail = t[i] * p * exp2_fast(-z * z);
        x[i] *= x[i] > 0.f ? 1.f - tail : tail;
    }
}

template <Activation kActivation>
__device__ void activate_four(float (&x)[4]) {
    float u[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        if constexpr (kActivation == Activation::kRelu) x[i] = max_or_nan(x[i], 0.f);
        if constexpr (kActivation == Activation::kGeluTanh)
            u[i] = x[i] * fmaf(0.0713548163f * x[i], x[i], 1.5957691216f);
        if constexpr (kActivation == Activation::kQuickGelu) u[i] = 1.702f * x[i];
        if constexpr (kActivation == Activation::kSilu) u[i] = x[i];
    }
    if constexpr (kActivation == Activation::kGelu)
        gelu_four(x);
    else if constexpr (kActivation != Activation::kNone && kActivation != Activation::kRelu)
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

template <class T>
__device__ float2 unpack(uint32_t pair) {
    if constexpr (std::is_same_v<T, __half>)
        return __half22float2(reinterpret_cast<__half2 const&>(pair));
    else
        return __bfloat1622float2(reinterpret_cast<__nv_bfloat162 const&>(pair));
}

__device__ inline void load_matrices_at(uint32_t (&out)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(address)
                 : "memory");
}

}  // namespace opfuse::device
