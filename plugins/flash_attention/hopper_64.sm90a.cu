#include "hopper.cuh"
#include "hopper_heads.cuh"
#include "hopper_short.cuh"

namespace opfuse {
namespace {

// From as many keys on, large tiles that stay pay for their start.
constexpr int kManyKeys = 1024, kManyCausalKeys = 512, kLongKeys = 2560;

template <class T>
cudaError_t launch(Attention const& a, cudaStream_t stream) {
    using Short = ShortShape<64, 1, 2, 4, false>;
    using Heads = HeadsShape<64, 112, 96>;
    if (has_key_mask(a)) return launch_short<T, Short, Scores::kKeyMask>(a, stream);
    if (!only_scales(a)) return launch_short<T, ShortShape<64, 1, 4, 3>, Scores::kAny>(a, stream);
    if (a.keys > 128 && a.keys <= Heads::kKeys) return launch_heads<T, Heads>(a, stream);
    bool const causal = a.ahead != kUnlimited;
    if (a.keys < (causal ? kManyCausalKeys : kManyKeys))
        return launch_short<T, Short, Scores::kScaled>(a, stream);
    if (causal && a.keys <= kLongKeys)  // tiles of fewer queries are shared out more evenly
        return launch_hopper<T, HopperShape<64, 2, 128, 4, 2>, true>(a, stream);
    return launch_hopper<T, HopperShape<64, 3, 128, 4, 2>, true>(a, stream);
}

}  // namespace

template <>
cudaError_t hopper_attention<64>(Attention const& a, __half, cudaStream_t stream) {
    return launch<__half>(a, stream);
}

template <>
cudaError_t hopper_attention<64>(Attention const& a, __nv_bfloat16, cudaStream_t stream) {
    return launch<__nv_bfloat16>(a, stream);
}

}  // namespace opfuse
