#include "hopper.cuh"
#include "hopper_heads.cuh"
#include "hopper_short.cuh"

namespace opfuse {
namespace {

// From as many keys on, large tiles that stay pay for their start.
constexpr int kManyKeys = 1024, kManyCausalKeys = 512;

// Scores that are no more than scaled.
template <class T>
cudaError_t launch(Attention const& a, cudaStream_t stream) {
    using Heads = HeadsShape<32, 112, 96>;
    if (a.keys > 128 && a.keys <= Heads::kKeys && !a.lengths.data)
        return launch_heads<T, Heads>(a, stream);
    if (a.keys < (a.ahead != kUnlimited ? kManyCausalKeys : kManyKeys))
        return launch_scaled<T, ShortShape<32, 1, 2, 4, false>>(a, stream);
    using Many = HopperShape<32, 2, 128, 4, 2>;
    return a.lengths.data ? launch_hopper<T, Many, Scores::kCounted>(a, stream)
                          : launch_hopper<T, Many, Scores::kScaled>(a, stream);
}

}  // namespace

template <>
cudaError_t hopper_attention<32>(Attention const& a, __half, void*, cudaStream_t stream) {
    return launch<__half>(a, stream);
}

template <>
cudaError_t hopper_attention<32>(Attention const& a, __nv_bfloat16, void*, cudaStream_t stream) {
    return launch<__nv_bfloat16>(a, stream);
}

}  // namespace opfuse
