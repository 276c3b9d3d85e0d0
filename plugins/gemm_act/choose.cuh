// The shape of the Hopper kernel that is a way to compute a product.
#pragma once
#include "hopper.cuh"
#include "tactics.h"

namespace opfuse {

template <class T, bool kByRows, bool kGated>
struct HopperLauncher {
    Gemm const& g;
    cudaStream_t stream;

    template <Sharing kSharing, int kGroups, int kHeights, int kRows, int kStages, int kCluster = 1>
    cudaError_t as(int band) const {
        using S = GemmShape<kSharing, kGroups, kHeights, kRows, kStages, kCluster>;
        return launch_hopper_gemm<T, S, kByRows, kGated>(g, band, stream);
    }

    cudaError_t operator()(Tactic tactic) const {
        using enum Sharing;
        using enum Tactic;
        if constexpr (kGated) {
            if (tactic == kColumns128) return as<kColumns, 2, 2, 128, 4>(16);
            if (tactic == kColumns64) return as<kColumns, 2, 2, 64, 5>(16);
            if (tactic == kNarrow128) return as<kColumns, 1, 2, 128, 6>(16);
            if (tactic == kTurns192) return as<kTurns, 2, 2, 192, 4>(11);
        } else {
            if (tactic == kColumns256) return as<kColumns, 2, 1, 256, 4>(8);
            if (tactic == kColumns192) return as<kColumns, 2, 1, 192, 4>(11);
            if (tactic == kColumns144) return as<kColumns, 2, 1, 144, 5>(16);
            if (tactic == kColumns128) return as<kColumns, 2, 1, 128, 6>(16);
            if (tactic == kColumns64) return as<kColumns, 2, 1, 64, 8>(16);
            if (tactic == kTurns144) return as<kTurns, 2, 2, 144, 5>(8);
            if (tactic == kTurns128) return as<kTurns, 2, 2, 128, 5, 2>(8);
            // 8192x4096x14336 takes 1414 us with two blocks that share rows, 1499 with two that
            // share columns, 1445 with single ones; gated, single ones are faster.
            if (tactic == kTurns192) return as<kTurns, 2, 2, 192, 4, 2>(11);
            if (tactic == kNarrow64) return as<kColumns, 1, 1, 64, 12>(16);
        }
        return cudaErrorNotSupported;
    }
};

template <class T>
cudaError_t choose_hopper_gemm(Gemm const& g, cudaStream_t stream) {
    device::Machine machine;
    if (cudaError_t const status = device::current_machine(machine)) return status;
    Tactic const tactic = choose_tactic(g, machine.multiprocessors);
    if (tactic == Tactic::kStream) return stream_gemm(g, T{}, stream);
    if (g.gated) return HopperLauncher<T, true, true>{g, stream}(tactic);
    return g.transposed ? HopperLauncher<T, false, false>{g, stream}(tactic)
                        : HopperLauncher<T, true, false>{g, stream}(tactic);
}

}  // namespace opfuse
