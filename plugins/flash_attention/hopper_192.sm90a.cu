#include "hopper.cuh"

namespace opfuse {
namespace {

template <class T>
cudaError_t launch(Attention const& a, cudaStream_t stream) {
    using Shape = HopperShape<192, 2, 96, 2, 1>;
    if (!only_scales(a)) return launch_hopper<T, Shape, Scores::kAny>(a, stream);
    return a.lengths.data ? launch_hopper<T, Shape, Scores::kCounted>(a, stream)
                          : launch_hopper<T, Shape, Scores::kScaled>(a, stream);
}

}  // namespace

template <>
cudaError_t hopper_attention<192>(Attention const& a, __half, void*, cudaStream_t stream) {
    return launch<__half>(a, stream);
}

template <>
cudaError_t hopper_attention<192>(Attention const& a, __nv_bfloat16, void*, cudaStream_t stream) {
    return launch<__nv_bfloat16>(a, stream);
}

}  // namespace opfuse
