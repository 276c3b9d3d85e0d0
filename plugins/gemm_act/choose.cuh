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
    cudaError_t as(int band, int parts = 1) const {
        using S = GemmShape<kSharing, kGroups, kHeights, kRows, kStages, kCluster>;
        return launch_hopper_gemm<T, S, kByRows, kGated>(g, band, stream, parts);
    }

    cudaError_t in_parts(int parts) const {
        using enum Sharing;
        switch (rows_in_parts(g)) {
        case 8: return as<kParts, 2, 1, 8, 6>(1, parts);
        case 16: return as<kParts, 2, 1, 16, 5>(1, parts);
        case 32: return as<kParts, 2, 1, 32, 4>(1, parts);
        case 64: return as<kParts, 2, 1, 64, 7>(1, parts);
        case 128: return as<kParts, 2, 1, 128, 4>(1, parts);
        }
        return cudaErrorNotSupported;
    }

    cudaError_t operator()(Tactic tactic) const {
        using enum Sharing;
        using enum Tactic;
        if constexpr (kGated) {
            if (tactic == kColumns128) return as<kColumns, 2, 2, 128, 4>(16);
            if (tactic == kColumns64) return as<kColumns, 2, 2, 64, 5>(16);
            if (tactic == kNarrow128) return as<kColumns, 1, 2, 128, 6>(16);
            if (tactic == kNarrow16) return as<kColumns, 1, 2, 16, 10>(16);
            if (tactic == kTurns192) return as<kTurns, 2, 2, 192, 4>(11);
        } else {
            if (tactic == kNarrowParts2) return as<kParts, 1, 1, 16, 16>(1, 2);
            if (int const parts = parts_of(tactic)) return in_parts(parts);
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
    if (g.gated) return HopperLauncher<T, true, true>{g, stream}(tactic);
    return g.transposed ? HopperLauncher<T, false, false>{g, stream}(tactic)
                        : HopperLauncher<T, true, false>{g, stream}(tactic);
}

}  // namespace opfuse
