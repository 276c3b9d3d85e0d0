// Which of the Hopper kernels a product takes, and in what shape.
#pragma once
#include "hopper.cuh"
#include "stream.cuh"

namespace opfuse {

inline constexpr int kStreamRows = 64;  // at most, for the kernel that splits the depth

template <class T, bool kByRows, bool kGated>
cudaError_t choose_hopper_gemm(Gemm const& g, cudaStream_t stream) {
    if (g.rows > kStreamRows)
        return launch_hopper_gemm<T, GemmShape<Sharing::kTurns, 2, 128, 6, 1>, kByRows, kGated>(
            g, 16, stream);
    device::Machine machine;
    if (cudaError_t const status = device::current_machine(machine)) return status;
    using S = StreamShape<128, 8>;
    int constexpr kOutCols = kGated ? S::kCols / 2 : S::kCols;
    int const tiles = (g.cols + kOutCols - 1) / kOutCols;
    int parts = 1;
    while (parts < kMostParts && 2 * parts * tiles <= machine.multiprocessors) parts *= 2;
    return launch_stream<T, S, kByRows, kGated>(g, parts, stream);
}

template <class T>
cudaError_t choose_hopper_gemm(Gemm const& g, cudaStream_t stream) {
    if (g.gated) return choose_hopper_gemm<T, true, true>(g, stream);
    return g.transposed ? choose_hopper_gemm<T, false, false>(g, stream)
                        : choose_hopper_gemm<T, true, false>(g, stream);
}

}  // namespace opfuse
