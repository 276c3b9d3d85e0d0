#include "hopper.cuh"

namespace opfuse {
namespace {

template <class T>
cudaError_t launch(Attention const& a, cudaStream_t stream) {
    if (has_tile_mask(a))
        return launch_hopper<T, HopperShape<256, 2, 64, 2, 1, 2>, Scores::kTileMask>(a, stream);
    if (!only_scales(a))
        return launch_hopper<T, HopperShape<256, 2, 64, 2, 1>, Scores::kAny>(a, stream);
    using Shape = HopperShape<256, 2, 80, 2, 1>;
    return a.lengths.data ? launch_hopper<T, Shape, Scores::kCounted>(a, stream)
                          : launch_hopper<T, Shape, Scores::kScaled>(a, stream);
}

}  // namespace

template <>
cudaError_t hopper_attention<256>(Attention const& a, __half, void*, cudaStream_t stream) {
    return launch<__half>(a, stream);
}

template <>
cudaError_t hopper_attention<256>(Attention const& a, __nv_bfloat16, void*, cudaStream_t stream) {
    return launch<__nv_bfloat16>(a, stream);
}

}  // namespace opfuse
