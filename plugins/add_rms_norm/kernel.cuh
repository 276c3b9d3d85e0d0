// sum = x + residual, rounded to T; y = sum * rsqrt(mean(sum^2) + epsilon) * gamma.  Pure CUDA.
#pragma once
#include "../device/full_row.cuh"
#include "../device/plan.cuh"
#include "../device/short_row.cuh"
#include "launch.h"

namespace opfuse {

// ---- kernels

template <class T, class Shape>
__global__ void __launch_bounds__(Shape::kLanes, Shape::kBlocks)
    add_rms_norm_kernel(T* y, T* sum,                   // [rows, cols]
                        T const* x, T const* residual,  // [rows, cols]
                        device::Parameter gamma,        // [cols]
                        int64_t rows, int cols, float epsilon, bool sum_is_read) {
    typename Shape::Team team;
    // A row that no block holds is read again from there.
    bool const keeps_sum = sum_is_read || Shape::kItems == 0;
    float const share = device::settled(1.f / cols);
    auto const body = [&](device::Row<T, Shape> const& row, int64_t) {
        auto tile = device::make_tile<device::Kept<T, Shape>>(
            team, row, [&](auto at) { return row.load(sum, at); });
        auto gammas = tile.beside([&](auto at) { return row.parameter(gamma, at); });
        auto const read = [&](auto at) {
            return device::Terms{row.load(x, at), row.load(residual, at)};
        };
        auto const add = [&](auto at, auto const& terms) {
            auto total = device::widen(terms.first);
            auto const other = device::widen(terms.second);
#pragma unroll
            for (int i = 0; i < at.kSize; ++i) total.at[i] += other.at[i];
            return device::keep<T, Shape>(device::narrow<T>(total));
        };
        auto const publish = [&](auto at, auto const& item) {
            if (keeps_sum) row.store(sum, at, device::rounded<T>(item));
        };
        tile.fill(read, add, publish, gammas);
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
    device::for_each_row<Shape>(team, rows, cols, body, x, residual);
}

// Of many rows, a block each.
template <class T, bool kStreams>
__global__ void __launch_bounds__(device::kLanesOfFull, device::kBlocksOfFull)
    full_add_rms_norm_kernel(T* y, T* sum,                   // [rows, cols]
                             T const* x, T const* residual,  // [rows, cols]
                             void const* gamma,              // [cols] of T
                             float share, float epsilon, bool sum_is_read) {
    device::FullRow<T, kStreams> const row;
    typename device::FullRow<T, kStreams>::Items items;
    row.begin_with_sums(items, sum, x, residual, sum_is_read);
    float const squares = row.squares(items);
    row.store_rms(y, items, rsqrtf(squares * share + epsilon), gamma);
}

// Of few rows; `rows` blocks or clusters.
template <class Shape, class T = typename Shape::T>
__global__ void __launch_bounds__(Shape::kLanes, 1)
    short_add_rms_norm_kernel(T* y, T* sum,                   // [rows, cols]
                              T const* x, T const* residual,  // [rows, cols]
                              void const* gamma,              // [cols] of T
                              float share, float epsilon, bool sum_is_read, bool lets_in_early) {
    // First of all: AddRmsNorm of 64 rows (4096) takes 1.49 so, not 1.52, and AddLayerNorm, which
    // does not, 1.60, not 1.55.
    if (lets_in_early) device::let_next_start();
    typename Shape::Team team;
    device::ShortRow<Shape> const row(team);
    auto const first = row.spots(x), second = row.spots(residual);
    auto const weights = row.parameter(gamma);
    auto const to = row.spots(y), sum_to = row.spots(sum);
    share = device::settled(share);
    epsilon = device::settled(epsilon);
    device::start_short(team, row, lets_in_early, first, second);
    auto const items = row.load(first), others = row.load(second),
               gammas = row.load_parameter(weights);
    auto const total = device::add<T>(items, others);
    if (sum_is_read) row.store(sum_to, total);
    device::finish_rms(team, row, to, device::widen(total), gammas, share, epsilon);
}

// ---- launchers

template <class T>
cudaError_t add_rms_norm(T* y, T* sum,                   // [rows, cols]
                         T const* x, T const* residual,  // [rows, cols]
                         device::Parameter gamma,        // [cols]
                         int64_t rows, int64_t cols, float epsilon, bool sum_is_read,
                         cudaStream_t stream) {
    auto const access = device::access_of(cols, device::aligned(gamma.data), x, residual, y, sum);
    bool const plain = device::plain_of<T>(gamma);
    if (access == device::Access::kAligned && plain) {
        auto const run = [&]<class Shape>(Shape, device::Machine const& machine,
                                          device::ShortGrid const& few) {
            return device::launch(short_add_rms_norm_kernel<Shape>, machine, few.grid, stream, y,
                                  sum, x, residual, gamma.data, 1.f / cols, epsilon, sum_is_read,
                                  few.lets_in_early);
        };
        if (auto const done = device::with_short_shape<T>(rows, cols, run)) return *done;
        auto const run_full = [&](device::Machine const& machine, device::Grid const& grid,
                                  bool streams) {
            auto const kernel =
                streams ? full_add_rms_norm_kernel<T, true> : full_add_rms_norm_kernel<T, false>;
            return device::launch(kernel, machine, grid, stream, y, sum, x, residual, gamma.data,
                                  1.f / cols, epsilon, sum_is_read);
        };
        if (auto const done = device::with_full_rows<T>(rows, cols, sum_is_read ? 4 : 3, run_full))
            return *done;
    }
    return device::with_row_shape<T, T, device::tuning::kItemsOfTwo>(
        rows, cols, access, plain,
        [&]<class Shape>(Shape, device::Machine const& machine, device::Grid const& grid) {
            return device::launch(add_rms_norm_kernel<T, Shape>, machine, grid, stream, y, sum, x,
                                  residual, gamma, rows, static_cast<int>(cols), epsilon,
                                  sum_is_read);
        });
}

}  // namespace opfuse
