#include "hopper.cuh"
#include "hopper_choice.h"
#include "hopper_heads.cuh"
#include "hopper_rest.cuh"
#include "hopper_short.cuh"

namespace opfuse {
namespace {

// From as many keys on, large tiles that stay pay for their start.
constexpr int kManyKeys = 1024, kManyCausalKeys = 512, kManyMasked = 512;

constexpr TileCost kAll[] = {{64, 64, 4, 3.02f, .27f, .34f, .74f, 1.75f},
                             {128, 128, 1, 3.61f, 1.42f, 1.29f, 1.29f},
                             {192, 128, 1, 2.92f, 3.65f, 1.43f, 1.43f}};
constexpr TileCost kSome[] = {{64, 64, 4, 6.27f, .15f, .37f, .02f, 1.35f},
                              {128, 128, 1, 5.16f, 1.3f, 1.16f, .78f},
                              {192, 128, 1, 7.29f, 1.75f, 1.61f, 1.28f}};

using Short = ShortShape<64, 1, 2, 4, false>;

// Tiles of more queries read their keys less often, and take four fifths of the time of each query;
// fewer queries may fill the last round better.
template <class T>
cudaError_t launch_masked(Attention const& a, cudaStream_t stream) {
    using Few = HopperShape<64, 2, 128, 3, 2, 2>;
    using Many = HopperShape<64, 3, 128, 2, 2, 2>;
    device::Machine machine;
    if (cudaError_t const status = device::current_machine(machine)) return status;
    auto const queries_in_turn = [&](int64_t rows) {
        int64_t const tiles = a.batch * a.heads * ((a.queries + rows - 1) / rows);
        return (tiles + machine.multiprocessors - 1) / machine.multiprocessors * rows;
    };
    return 4 * queries_in_turn(Many::kRows) <= 5 * queries_in_turn(Few::kRows)
               ? launch_hopper<T, Many, Scores::kTileMask>(a, stream)
               : launch_hopper<T, Few, Scores::kTileMask>(a, stream);
}

// Scores that are no more than scaled, of batches that have all keys.
template <class T>
cudaError_t launch_fastest(Attention const& a, void* workspace, cudaStream_t stream) {
    using Heads = HeadsShape<64, 112, 96>;
    using Few = HopperShape<64, 2, 128, 4, 2>;
    using Many = HopperShape<64, 3, 128, 4, 2>;
    bool const whole = sees_all(a) && a.keys > 192;  // no more than four steps of the others
    if (whole && a.keys <= Heads::kKeys) return launch_heads<T, Heads>(a, stream);
    if (a.keys <= Heads::kKeys) return launch_short<T, Short, Scores::kScaled>(a, stream);
    Choice const best = sees_alike(a) ? fastest(a, kAll, 1, 64) : fastest(a, kSome, 1, 64);
    if (best.shared) {
        cudaError_t const status = best.shared == 2 ? launch_rest<T, Many>(a, workspace, stream)
                                                    : launch_rest<T, Few>(a, workspace, stream);
        if (status != cudaErrorNotSupported) return status;
    }
    switch (best.index) {
    case 0: return launch_short<T, Short, Scores::kScaled>(a, stream);
    case 1: return launch_hopper<T, Few, Scores::kScaled>(a, stream);
    default: return launch_hopper<T, Many, Scores::kScaled>(a, stream);
    }
}

template <class T>
cudaError_t launch(Attention const& a, void* workspace, cudaStream_t stream) {
    if (has_key_mask(a)) return launch_short<T, Short, Scores::kKeyMask>(a, stream);
    if (has_tile_mask(a) && a.keys >= kManyMasked) return launch_masked<T>(a, stream);
    if (!only_scales(a)) return launch_any<T, ShortShape<64, 1, 4, 3>>(a, stream);
    if (a.lengths.data)
        return a.keys < (a.ahead != kUnlimited ? kManyCausalKeys : kManyKeys)
                   ? launch_short<T, Short, Scores::kCounted>(a, stream)
                   : launch_hopper<T, HopperShape<64, 3, 128, 4, 2>, Scores::kCounted>(a, stream);
    return launch_fastest<T>(a, workspace, stream);
}

}  // namespace

template <>
cudaError_t hopper_attention<64>(Attention const& a, __half, void* workspace, cudaStream_t stream) {
    return launch<__half>(a, workspace, stream);
}

template <>
cudaError_t hopper_attention<64>(Attention const& a, __nv_bfloat16, void* workspace,
                                 cudaStream_t stream) {
    return launch<__nv_bfloat16>(a, workspace, stream);
}

}  // namespace opfuse
