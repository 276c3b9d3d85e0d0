// Which shape of the Hopper kernel a product takes.
#pragma once
#include "hopper.cuh"

namespace opfuse {

// The times of each shape, in nanoseconds, on an H100 whose other multiprocessors do the same; from
// benchmarks/results/gemm_h100_speed.txt and the runs before it.  Of a stage of 64 of the depth:
inline constexpr int64_t kLargeStage = 660, kWideStage = 505, kMediumStage = 370, kSmallStage = 250;
inline constexpr int64_t kTurnsStage = 355;
// Of a tile beyond its stages: before the first and behind the last, with an activation or a
// residual, and where the other group multiplies meanwhile (then once, not for each tile).
inline constexpr int64_t kTile = 2000, kFinishedTile = 5000, kTurns = 3000;
// Of blocks that exchange sums, so few stages would save nothing.
inline constexpr int64_t kLeastParts = 256;  // of the depth

struct TileCounts {
    int64_t rounds;  // of all multiprocessors
    int64_t tiles;
};

inline TileCounts count_tiles(Gemm const& g, int64_t rows, int64_t cols, int64_t multiprocessors) {
    int64_t const tiles = (g.rows + rows - 1) / rows * ((g.cols + cols - 1) / cols);
    return {(tiles + multiprocessors - 1) / multiprocessors, tiles};
}

template <class T, bool kByRows, bool kGated>
cudaError_t choose_hopper_gemm(Gemm const& g, cudaStream_t stream) {
    using Large = GemmShape<Sharing::kRows, 2, 256, 4>;
    using Wide = GemmShape<Sharing::kRows, 2, kGated ? 256 : 192, 4>;
    using Turns = GemmShape<Sharing::kTurns, 2, 128, 6, 2>;
    using Medium = GemmShape<Sharing::kRows, 2, 128, 6>;
    using Small = GemmShape<Sharing::kRows, 1, 128, 8>;
    using Parts = GemmShape<Sharing::kRows, 1, kGated ? 256 : 128, kGated ? 4 : 8, 1, 2>;
    device::Machine machine;
    if (cudaError_t const status = device::current_machine(machine)) return status;
    auto const count = [&]<class S>(std::type_identity<S>) {
        return count_tiles(g, S::kRows, kGated ? S::kCols / 2 : S::kCols, machine.multiprocessors);
    };
    auto const launch = [&]<class S>(std::type_identity<S>, int band) {
        return launch_hopper_gemm<T, S, kByRows, kGated>(g, band, stream);
    };
    std::type_identity<Large> const large;
    std::type_identity<Wide> const wide;
    std::type_identity<Turns> const turns;
    std::type_identity<Medium> const medium;
    std::type_identity<Small> const small;
    std::type_identity<Parts> const parts;
    int64_t const steps = (g.depth + 63) / 64;
    bool const plain = g.activation == device::Activation::kNone && !g.residual;
    int64_t const tile = plain || kGated ? kTile : kFinishedTile;
    int64_t const large_time = count(large).rounds * (steps * kLargeStage + tile);
    int64_t const wide_time =
        kGated ? large_time : count(wide).rounds * (steps * kWideStage + tile);
    int64_t const medium_time = count(medium).rounds * (steps * kMediumStage + tile);
    int64_t const small_time = count(small).rounds * (steps * kSmallStage + tile);
    // Gated, half of the columns are finished, and taking turns loses more than it hides.
    int64_t const turns_time =
        kGated ? large_time : count(turns).rounds * steps * kTurnsStage + kTurns;
    int64_t const least = std::min({large_time, wide_time, medium_time, small_time, turns_time});
    if (large_time == least) return launch(large, 16);
    if constexpr (!kGated) {
        if (wide_time == least) return launch(wide, 16);
        if (turns_time == least) return launch(turns, 2);
    }
    if (medium_time == least) return launch(medium, 16);
    bool const few = 2 * count(parts).tiles <= machine.multiprocessors;
    return few && g.depth >= kLeastParts ? launch(parts, 16) : launch(small, 16);
}

template <class T>
cudaError_t choose_hopper_gemm(Gemm const& g, cudaStream_t stream) {
    if (g.gated) return choose_hopper_gemm<T, true, true>(g, stream);
    return g.transposed ? choose_hopper_gemm<T, false, false>(g, stream)
                        : choose_hopper_gemm<T, true, false>(g, stream);
}

}  // namespace opfuse
