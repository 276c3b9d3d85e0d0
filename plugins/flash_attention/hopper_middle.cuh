// Attention on Hopper for the heads between 64 and 128, of sizes that differ in little else.
#pragma once
#include "hopper.cuh"
#include "hopper_choice.h"
#include "hopper_rest.cuh"
#include "hopper_short.cuh"

namespace opfuse {

// What the kernels take where all keys are seen, and where not.
struct MiddleCosts {
    TileCost all[4], some[3];
};

// Scores that are no more than scaled, of batches that have all keys.
template <class T, int kSize>
cudaError_t launch_fastest(Attention const& a, MiddleCosts const& costs, void* workspace,
                           cudaStream_t stream) {
    using Few = ShortShape<kSize, 1, 2, 2>;
    using Small = ShortShape<kSize, 1, 1, 3, false>;
    using Many = HopperShape<kSize, 2, 128, 2, 2>;
    using Large = HopperShape<kSize, 3, 80, 4, 1>;
    Choice const best =
        sees_alike(a) ? fastest(a, costs.all, 2, kSize) : fastest(a, costs.some, 2, kSize);
    if (best.shared) {
        cudaError_t const status = best.shared == 3 ? launch_rest<T, Large>(a, workspace, stream)
                                                    : launch_rest<T, Many>(a, workspace, stream);
        if (status != cudaErrorNotSupported) return status;
    }
    switch (best.index) {
    case 0: return launch_short<T, Few, Scores::kScaled>(a, stream);
    case 1: return launch_short<T, Small, Scores::kScaled>(a, stream);
    case 2: return launch_hopper<T, Many, Scores::kScaled>(a, stream);
    default: return launch_hopper<T, Large, Scores::kScaled>(a, stream);
    }
}

template <class T, int kSize>
cudaError_t launch_middle(Attention const& a, MiddleCosts const& costs, void* workspace,
                          cudaStream_t stream) {
    if (only_scales(a) && !a.lengths.data)
        return launch_fastest<T, kSize>(a, costs, workspace, stream);
    constexpr int kManyKeys = 512;  // from as many on, large tiles that stay pay for their start
    using Short = ShortShape<kSize, 1, 2, 2>;
    if (a.keys < kManyKeys)
        return only_scales(a) ? launch_short<T, Short, Scores::kCounted>(a, stream)
                              : launch_any<T, Short>(a, stream);
    if (has_tile_mask(a))
        return launch_hopper<T, HopperShape<kSize, 2, 128, 2, 1, 2>, Scores::kTileMask>(a, stream);
    if (!only_scales(a))
        return launch_hopper<T, HopperShape<kSize, 2, 128, 2, 1>, Scores::kAny>(a, stream);
    return launch_hopper<T, HopperShape<kSize, 2, 128, 2, 2>, Scores::kCounted>(a, stream);
}

}  // namespace opfuse
