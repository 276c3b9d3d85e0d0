#include "hopper.cuh"
#include "hopper_short.cuh"

namespace opfuse {
namespace {

// From as many keys on, large tiles that stay pay for their start.
constexpr int kManyKeys = 512;

template <class T>
cudaError_t launch(Attention const& a, cudaStream_t stream) {
    using Short = ShortShape<128, 1, 2, 2>;
    if (a.keys < kManyKeys)
        return only_scales(a) ? launch_scaled<T, Short>(a, stream)
                              : launch_any<T, Short>(a, stream);
    if (has_tile_mask(a))
        return launch_hopper<T, HopperShape<128, 2, 128, 2, 1, 2>, Scores::kTileMask>(a, stream);
    if (!only_scales(a))
        return launch_hopper<T, HopperShape<128, 2, 128, 2, 1>, Scores::kAny>(a, stream);
    if (a.lengths.data)
        return launch_hopper<T, HopperShape<128, 2, 128, 2, 2>, Scores::kCounted>(a, stream);
    // Tiles of more queries read less; of fewer, they waste less where not all keys are seen.
    if (a.ahead == kUnlimited)
        return launch_hopper<T, HopperShape<128, 3, 80, 4, 1>, Scores::kScaled>(a, stream);
    return launch_hopper<T, HopperShape<128, 2, 128, 2, 2>, Scores::kScaled>(a, stream);
}

}  // namespace

template <>
cudaError_t hopper_attention<128>(Attention const& a, __half, cudaStream_t stream) {
    return launch<__half>(a, stream);
}

template <>
cudaError_t hopper_attention<128>(Attention const& a, __nv_bfloat16, cudaStream_t stream) {
    return launch<__nv_bfloat16>(a, stream);
}

}  // namespace opfuse
