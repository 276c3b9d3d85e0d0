// Launches of products of few rows on Hopper: which shape has what tiles.
#pragma once
#include <algorithm>

#include "../device/launch.cuh"
#include "stream.cuh"

namespace opfuse {

// Tiles of `cols` columns, 0 for as many as they can have, and so many of rows.
struct StreamTiles {
    int across = 1, cols = 0;
};

template <class S, bool kByRows, bool kGated>
StreamPlan plan_stream(Gemm const& g, StreamTiles const& wanted, int multiprocessors) {
    constexpr int kMostShare = 4;  // blocks of a cluster
    constexpr int kEarly = 4, kMostShared = 227 * 1024;
    StreamPlan plan{};
    plan.across = wanted.across;
    plan.rows = over(static_cast<int>(g.rows), wanted.across);
    plan.cols = wanted.cols > 0 ? wanted.cols : S::template kCols<kGated>;
    plan.box = 8 * over(plan.cols, 8 * S::template kOut<kGated>);
    plan.bytes = (plan.rows + S::kBoxes * plan.box) * device::kBoxBytes;
    plan.tiles = over(g.cols, plan.cols) * plan.across;
    plan.steps = over(g.depth, S::kDepth);
    plan.early = kEarly;
    plan.cluster = 1;
    plan.spread = true;
    // A weight by columns has its rows of the depth one after another: halves of long ones.
    if (!kByRows && g.depth >= 8192 && 3 * plan.tiles > multiprocessors &&
        2 * plan.tiles <= multiprocessors) {
        plan.cluster = 2, plan.spread = false;
        return plan;
    }
    while (plan.cluster < kMostShare && 3 * plan.cluster * plan.tiles <= multiprocessors &&
           2 * plan.cluster <= plan.steps && S::shared_bytes(2 * plan.cluster) <= kMostShared)
        plan.cluster *= 2;
    return plan;
}

template <class T, class S, bool kByRows, bool kGated>
cudaError_t launch_stream(Gemm const& g, StreamTiles const& tiles, cudaStream_t stream) {
    device::Machine machine;
    if (cudaError_t const status = device::current_machine(machine)) return status;
    StreamPlan const plan = plan_stream<S, kByRows, kGated>(g, tiles, machine.multiprocessors);
    // As many bytes as a block reads of a row: blocks that read their neighbours come later.
    int const fetched = kByRows && plan.cols < 128 ? 128 : 256;
    GemmMaps maps;
    if (!map_gemm(maps, g, std::is_same_v<T, __half>, plan.rows, S::kRows, fetched, plan.box))
        return cudaErrorNotSupported;
    int const rounds = over(plan.tiles, machine.multiprocessors * S::kShare);
    device::Grid grid;
    grid.cluster = plan.cluster;
    grid.blocks = int64_t{over(plan.tiles / plan.across, rounds)} * plan.across * plan.cluster;
    grid.threads = dim3(S::kThreads);
    grid.shared_bytes = S::shared_bytes(plan.cluster);
    return device::launch(stream_gemm_kernel<T, S, kByRows, kGated>, machine, grid, stream, g, plan,
                          maps);
}

// Shapes that were the fastest on an H100 of some thirty products, by rows and by columns: what is
// under way at a time is 6 to 10 MB.
template <class T, bool kByRows>
struct StreamLauncher {
    Gemm const& g;
    cudaStream_t stream;

    template <int... kShape>
    cudaError_t as(StreamTiles const& tiles = {}) const {
        return launch_stream<T, StreamShape<kShape...>, kByRows, false>(g, tiles, stream);
    }
    template <int... kShape>
    cudaError_t gates_as(StreamTiles const& tiles = {}) const {
        return launch_stream<T, StreamShape<kShape...>, true, true>(g, tiles, stream);
    }

    // Blocks with two tiles each would leave a quarter of the multiprocessors idle.
    static bool uneven(int tiles) { return tiles > 132 && tiles < 200; }

    cudaError_t plain() const {
        int const tiles = over(g.cols, 64);
        bool const wide = tiles > 132;
        if (g.rows <= 8) return wide ? as<8, 2, 5, 5, 2>() : as<8, 1, 11, 11, 2>();
        if (g.rows <= 16) return wide ? as<16, 1, 5, 5, 4, 2>() : as<16, 1, 10, 10, 2>();
        if (g.rows <= 32) {
            if (tiles <= 66) return as<32, 1, 12, 12, 1>();
            if (tiles > 264) return as<32, 2, 5, 5, 2, 2>();
            return uneven(tiles) ? as<32, 1, 8, 8, 2, 2>() : as<32, 1, 8, 8, 2>();
        }
        if (g.rows > 64) {
            if (2 * tiles <= 132) return as<64, 1, 12, 12, 1>({2});
            return wide ? as<128, 1, 6, 4, 2, 2>() : as<128, 1, 8, 8, 1>();
        }
        if (!wide) {
            // Of rows of the weight in parts of 80 bytes 64x5120x5120 takes 22.5 us, not 21.4.
            int const cols = even_cols(tiles);
            return as<64, 1, 12, 12, 1>({1, kByRows && cols % 16 != 0 ? 0 : cols});
        }
        if (uneven(tiles)) return as<64, 1, 8, 4, 2, 2>();
        return kByRows ? as<64, 2, 6, 4, 1>() : as<64, 2, 8, 8, 1>();
    }

    // Of tiles of 64 columns where two neighbouring multiprocessors have one and others two: 0, or
    // fewer columns, so that each multiprocessor has a tile.
    int even_cols(int tiles) const { return tiles > 66 ? 8 * over(g.cols, 8 * 132) : 0; }

    // What gains alone may lose behind a norm.  Of 64 rows, two layers of Llama-3-8B's products
    // take 328 us by two tiles one after another, 361 by tiles of twice the columns, which alone
    // are 1 % faster.  So have gates of more rows no kernel here that alone is 5 % faster: four
    // layers of 2048, 3072, 8192 and 128 rows took 293 us with it and two tiles of 64 rows
    // elsewhere, 248 with neither.
    cudaError_t gates() const {
        int const tiles = over(g.cols, 64);
        bool const wide = tiles > 132;
        if (g.rows <= 8) return wide ? gates_as<8, 2, 3, 3, 4, 2>() : gates_as<8, 2, 5, 5, 2>();
        if (g.rows <= 16) return wide ? gates_as<16, 2, 3, 3, 4, 2>() : gates_as<16, 2, 5, 5, 2>();
        if (g.rows <= 32) return wide ? gates_as<32, 2, 6, 3, 2, 2>() : gates_as<32, 2, 5, 5, 2>();
        if (!wide) return gates_as<64, 2, 6, 6, 1>({1, even_cols(tiles)});
        return uneven(tiles) ? gates_as<64, 2, 5, 3, 2, 2>() : gates_as<64, 2, 4, 4, 2>();
    }
};

template <class T>
cudaError_t choose_stream(Gemm const& g, cudaStream_t stream) {
    if (g.gated) return StreamLauncher<T, true>{g, stream}.gates();
    return g.transposed ? StreamLauncher<T, false>{g, stream}.plain()
                        : StreamLauncher<T, true>{g, stream}.plain();
}

}  // namespace opfuse
