// y = x * rsqrt(mean(x^2) + epsilon) * gamma over the last axis, in fp32.  Pure CUDA.
#pragma once
#include "../device/full_row.cuh"
#include "../device/plan.cuh"
#include "../device/short_row.cuh"
#include "launch.h"

namespace opfuse {

// ---- kernels

template <class T, class Shape>
__global__ void __launch_bounds__(Shape::kLanes, Shape::kBlocks)
    rms_norm_kernel(T* y, T const* x,         // [rows, cols]
                    device::Parameter gamma,  // [cols]
                    int64_t rows, int cols, float epsilon) {
    typename Shape::Team team;
    float const share = device::settled(1.f / cols);
    auto const body = [&](device::Row<T, Shape> const& row, int64_t) {
        auto const read = [&](auto at) { return row.load(x, at); };
        auto tile = device::make_tile<device::Kept<T, Shape>>(team, row, read);
        auto gammas = tile.beside([&](auto at) { return row.parameter(gamma, at); });
        auto const kept = [](auto, auto const& item) { return device::keep<T, Shape>(item); };
        tile.fill(read, kept, [](auto, auto const&) {}, gammas);
        float const squares = team.sum(tile.sum([](float a) { return a * a; }));
        float const scale = rsqrtf(squares * share + epsilon);
        auto const finish = [&](auto at, auto const& item, auto const& weights) {
            auto const g = weights.floats();
            auto wide = device::widen(item);
#pragma unroll
            for (int i = 0; i < at.kSize; ++i) wide.at[i] = wide.at[i] * scale * g.at[i];
            row.store(y, at, device::narrow<T>(wide));
        };
        tile.for_each(finish, gammas);
    };
    device::for_each_row<Shape>(team, rows, cols, body, x);
}

// Of many rows, a block each.
template <class T, bool kStreams>
__global__ void __launch_bounds__(device::kLanesOfFull, device::kBlocksOfFull)
    full_rms_norm_kernel(T* y, T const* x,   // [rows, cols]
                         void const* gamma,  // [cols] of T
                         float share, float epsilon) {
    device::FullRow<T, kStreams> const row;
    row.fetch(x);
    device::wait_in_turn();
    typename device::FullRow<T, kStreams>::Items items;
    row.load(items, x);
    float const squares = row.squares(items);
    row.store_rms(y, items, rsqrtf(squares * share + epsilon), gamma);
}

// Of few rows; `rows` blocks or clusters.
template <class Shape, class T = typename Shape::T>
__global__ void __launch_bounds__(Shape::kLanes, 1)
    short_rms_norm_kernel(T* y, T const* x,   // [rows, cols]
                          void const* gamma,  // [cols] of T
                          float share, float epsilon, bool lets_in_early) {
    // First of all, as AddRmsNorm does, where the figures are.
    if (lets_in_early) device::let_next_start();
    typename Shape::Team team;
    device::ShortRow<Shape> const row(team);
    auto const from = row.spots(x), weights = row.parameter(gamma);
    auto const to = row.spots(y);
    share = device::settled(share);
    epsilon = device::settled(epsilon);
    device::start_short(team, row, lets_in_early, from);
    auto const items = row.load(from), gammas = row.load_parameter(weights);
    device::finish_rms(team, row, to, device::widen(items), gammas, share, epsilon);
}

// ---- launchers

template <class T>
cudaError_t rms_norm(T* y, T const* x,         // [rows, cols]
                     device::Parameter gamma,  // [cols]
                     int64_t rows, int64_t cols, float epsilon, cudaStream_t stream) {
    auto const access = device::access_of(cols, device::aligned(gamma.data), x, y);
    auto const plain = device::plain_of<T>(gamma);
    if (access == device::Access::kAligned && plain) {
        auto const run = [&]<class Shape>(Shape, device::Machine const& machine,
                                          device::ShortGrid const& few) {
            return device::launch(short_rms_norm_kernel<Shape>, machine, few.grid, stream, y, x,
                                  gamma.data, 1.f / cols, epsilon, few.lets_in_early);
        };
        if (auto const done = device::with_short_shape<T>(rows, cols, run)) return *done;
        auto const run_full = [&](device::Machine const& machine, device::Grid const& grid,
                                  bool streams) {
            auto const kernel =
                streams ? full_rms_norm_kernel<T, true> : full_rms_norm_kernel<T, false>;
            return device::launch(kernel, machine, grid, stream, y, x, gamma.data, 1.f / cols,
                                  epsilon);
        };
        if (auto const done = device::with_full_rows<T>(rows, cols, 2, run_full)) return *done;
    }
    return device::with_row_shape<T, T, device::tuning::kItemsOfOne>(
        rows, cols, access, plain,
        [&]<class Shape>(Shape, device::Machine const& machine, device::Grid const& grid) {
            return device::launch(rms_norm_kernel<T, Shape>, machine, grid, stream, y, x, gamma,
                                  rows, static_cast<int>(cols), epsilon);
        });
}

}  // namespace opfuse
