// Which of the Hopper kernels a product takes, and in what shape.
#pragma once
#include "hopper.cuh"

namespace opfuse {

// The time that a shape of tile takes, in nanoseconds: what a stage takes on an H100 whose other
// multiprocessors do the same, and what is before the first and behind the last of a tile.
inline constexpr int64_t kTileOverhead = 3000;

inline int64_t tile_time(Gemm const& g, int64_t rows, int64_t cols, int64_t stage_time,
                         int64_t multiprocessors) {
    int64_t const tiles = (g.rows + rows - 1) / rows * ((g.cols + cols - 1) / cols);
    int64_t const rounds = (tiles + multiprocessors - 1) / multiprocessors;
    return rounds * ((g.depth + 63) / 64 * stage_time + kTileOverhead);
}

template <class T, bool kByRows, bool kGated>
cudaError_t choose_hopper_gemm(Gemm const& g, cudaStream_t stream) {
    device::Machine machine;
    if (cudaError_t const status = device::current_machine(machine)) return status;
    int constexpr kBand = 16;
    auto const time = [&](int64_t rows, int64_t cols, int64_t stage_time) {
        return tile_time(g, rows, kGated ? cols / 2 : cols, stage_time, machine.multiprocessors);
    };
    // 128 x 4096 x 4096 takes 42.9, 22.3, and 16.6 us in these; 1024 x 4096 x 4096 49.1, 51.3,
    // more.
    int64_t const large = time(128, 256, 660), medium = time(128, 128, 370);
    int64_t const small = time(64, 128, 250);
    if (large <= std::min(medium, small))
        return launch_hopper_gemm<T, GemmShape<Sharing::kRows, 2, 256, 4, 1>, kByRows, kGated>(
            g, kBand, stream);
    if (medium <= small)
        return launch_hopper_gemm<T, GemmShape<Sharing::kRows, 2, 128, 6, 1>, kByRows, kGated>(
            g, kBand, stream);
    return launch_hopper_gemm<T, GemmShape<Sharing::kRows, 1, 128, 8, 1>, kByRows, kGated>(g, kBand,
                                                                                           stream);
}

template <class T>
cudaError_t choose_hopper_gemm(Gemm const& g, cudaStream_t stream) {
    if (g.gated) return choose_hopper_gemm<T, true, true>(g, stream);
    return g.transposed ? choose_hopper_gemm<T, false, false>(g, stream)
                        : choose_hopper_gemm<T, true, false>(g, stream);
}

}  // namespace opfuse
