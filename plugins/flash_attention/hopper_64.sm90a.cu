#include "hopper.cuh"
#include "hopper_heads.cuh"
#include "hopper_short.cuh"

namespace opfuse {
namespace {

// From as many keys on, large tiles that stay pay for their start.
constexpr int kManyKeys = 1024;

template <class T>
cudaError_t launch(Attention const& a, cudaStream_t stream) {
    using Heads = HeadsShape<64, 112, 96>;
    if (has_key_mask(a))
        return launch_short<T, ShortShape<64, 1, 2, 4, false>, Scores::kKeyMask>(a, stream);
    if (!only_scales(a)) return launch_short<T, ShortShape<64, 1, 4, 3>, Scores::kAny>(a, stream);
    if (a.keys > 128 && a.keys <= Heads::kKeys) return launch_heads<T, Heads>(a, stream);
    if (a.keys <= kManyKeys)
        return launch_short<T, ShortShape<64, 1, 2, 4>, Scores::kScaled>(a, stream);
    return launch_hopper<T, HopperShape<64, 3, 128, 4, 2, false>, true>(a, stream);
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
