#include "hopper.cuh"
#include "hopper_heads.cuh"
#include "hopper_short.cuh"

namespace opfuse {
namespace {

// From as many keys on, large tiles that stay pay for their start.
constexpr int kManyKeys = 1024, kManyCausalKeys = 512, kLongKeys = 2560, kManyMasked = 512;

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

template <class T>
cudaError_t launch(Attention const& a, cudaStream_t stream) {
    using Short = ShortShape<64, 1, 2, 4, false>;
    using Heads = HeadsShape<64, 112, 96>;
    if (has_key_mask(a)) return launch_short<T, Short, Scores::kKeyMask>(a, stream);
    if (has_tile_mask(a) && a.keys >= kManyMasked) return launch_masked<T>(a, stream);
    if (!only_scales(a)) return launch_any<T, ShortShape<64, 1, 4, 3>>(a, stream);
    if (a.keys > 128 && a.keys <= Heads::kKeys && !a.lengths.data)
        return launch_heads<T, Heads>(a, stream);
    bool const causal = a.ahead != kUnlimited;
    if (a.keys < (causal ? kManyCausalKeys : kManyKeys)) return launch_scaled<T, Short>(a, stream);
    if (a.lengths.data)
        return launch_hopper<T, HopperShape<64, 3, 128, 4, 2>, Scores::kCounted>(a, stream);
    if (causal && a.keys <= kLongKeys)  // tiles of fewer queries are shared out more evenly
        return launch_hopper<T, HopperShape<64, 2, 128, 4, 2>, Scores::kScaled>(a, stream);
    return launch_hopper<T, HopperShape<64, 3, 128, 4, 2>, Scores::kScaled>(a, stream);
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
