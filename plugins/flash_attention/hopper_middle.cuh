// Attention on Hopper for the heads between 64 and 128, of sizes that differ in nothing else.
#pragma once
#include "hopper.cuh"
#include "hopper_short.cuh"

namespace opfuse {

template <class T, int kSize>
cudaError_t launch_middle(Attention const& a, cudaStream_t stream) {
    constexpr int kManyKeys = 512;  // from as many on, large tiles that stay pay for their start
    using Short = ShortShape<kSize, 1, 2, 2>;
    if (a.keys < kManyKeys)
        return only_scales(a) ? launch_scaled<T, Short>(a, stream)
                              : launch_any<T, Short>(a, stream);
    if (!only_scales(a))
        return launch_hopper<T, HopperShape<kSize, 2, 128, 2, 1>, Scores::kAny>(a, stream);
    using Many = HopperShape<kSize, 2, 128, 2, 2>;
    return a.lengths.data ? launch_hopper<T, Many, Scores::kCounted>(a, stream)
                          : launch_hopper<T, Many, Scores::kScaled>(a, stream);
}

}  // namespace opfuse
