// sum = x + residual (+ bias), rounded to T; y = (sum - mean) * rsqrt(variance + epsilon) * gamma +
// beta, with the variance taken around the mean, not as E[x^2] - E[x]^2.  Pure CUDA.
#pragma once
#include "../device/full_row.cuh"
#include "../device/plan.cuh"
#include "../device/short_row.cuh"
#include "launch.h"

namespace opfuse {

// ---- kernels

template <class T, class Shape>
__global__ void __launch_bounds__(Shape::kLanes, Shape::kBlocks)
    add_layer_norm_kernel(T* y, T* sum,                   // [rows, cols]
                          T const* x, T const* residual,  // [rows, cols]
                          AddLayerNormParameters parameters, int64_t rows, int cols, float epsilon,
                          bool sum_is_read) {
    typename Shape::Team team;
    // A row that no block holds is read again from there.
    bool const keeps_sum = sum_is_read || Shape::kItems == 0;
    float const share = device::settled(1.f / cols);
    auto const body = [&](device::Row<T, Shape> const& row, int64_t) {
        auto tile = device::make_tile<device::Kept<T, Shape>>(
            team, row, [&](auto at) { return row.load(sum, at); });
        auto gammas = tile.beside([&](auto at) { return row.parameter(parameters.gamma, at); });
        auto betas = tile.beside([&](auto at) { return row.parameter(parameters.beta, at); });
        auto const read = [&](auto at) {
            return device::Terms{row.load(x, at), row.load(residual, at)};
        };
        // In fp32 with one rounding.
        auto const add = [&](auto at, auto const& terms) {
            auto total = device::widen(terms.first);
            auto const other = device::widen(terms.second);
#pragma unroll
            for (int i = 0; i < at.kSize; ++i) total.at[i] += other.at[i];
            if constexpr (!Shape::kPlain) {
                if (parameters.bias.data) {
                    auto const bias = row.parameter(parameters.bias, at).floats();
#pragma unroll
                    for (int i = 0; i < at.kSize; ++i) total.at[i] += bias.at[i];
                }
            }
            return device::keep<T, Shape>(device::narrow<T>(total));
        };
        auto const publish = [&](auto at, auto const& item) {
            if (keeps_sum) row.store(sum, at, device::rounded<T>(item));
        };
        tile.fill(read, add, publish, gammas, betas);
        auto const [count, mean, squares] =
            team.merge(tile.moments(), share, [&](int warp) { return tile.count_of(warp); });
        float const scale = rsqrtf(squares * share + epsilon);
        auto const finish = [&](auto at, auto const& item, auto const& scales, auto const& shifts) {
            auto const g = scales.floats(), b = shifts.floats();
            auto wide = device::widen(item);
#pragma unroll
            for (int i = 0; i < at.kSize; ++i)
                wide.at[i] = (wide.at[i] - mean) * scale * g.at[i] + b.at[i];
            row.store(y, at, device::narrow<T>(wide));
        };
        tile.for_each(finish, gammas, betas);
    };
    device::for_each_row<Shape>(team, rows, cols, body, x, residual);
}

// Of many rows, a block each, without a bias.
template <class T, bool kStreams>
__global__ void __launch_bounds__(device::kLanesOfFull, device::kBlocksOfFull)
    full_add_layer_norm_kernel(T* y, T* sum,                         // [rows, cols]
                               T const* x, T const* residual,        // [rows, cols]
                               void const* gamma, void const* beta,  // [cols] of T
                               float share, float epsilon, bool sum_is_read) {
    device::FullRow<T, kStreams> const row;
    typename device::FullRow<T, kStreams>::Items items;
    row.begin_with_sums(items, sum, x, residual, sum_is_read);
    auto const [mean, variance] = row.moments(items, share);
    row.store_layer(y, items, mean, rsqrtf(variance + epsilon), gamma, beta);
}

// Of few rows, without a bias; `rows` blocks or clusters.
template <class Shape, class T = typename Shape::T>
__global__ void __launch_bounds__(Shape::kLanes, 1)
    short_add_layer_norm_kernel(T* y, T* sum,                         // [rows, cols]
                                T const* x, T const* residual,        // [rows, cols]
                                void const* gamma, void const* beta,  // [cols] of T
                                float share, float epsilon, bool sum_is_read, bool lets_in_early) {
    typename Shape::Team team;
    device::ShortRow<Shape> const row(team);
    auto const first = row.spots(x), second = row.spots(residual);
    auto const scales = row.parameter(gamma), shifts = row.parameter(beta);
    auto const to = row.spots(y), sum_to = row.spots(sum);
    share = device::settled(share);
    epsilon = device::settled(epsilon);
    device::start_short(team, row, lets_in_early, first, second);
    auto const items = row.load(first), others = row.load(second);
    auto const gammas = row.load_parameter(scales), betas = row.load_parameter(shifts);
    auto const total = device::add<T>(items, others);
    device::finish_layer(team, row, to, device::widen(total), gammas, betas, share, epsilon, [&] {
        if (sum_is_read) row.store(sum_to, total);
    });
}

// ---- launchers

template <class T>
cudaError_t add_layer_norm(T* y, T* sum,                   // [rows, cols]
                           T const* x, T const* residual,  // [rows, cols]
                           AddLayerNormParameters parameters, int64_t rows, int64_t cols,
                           float epsilon, bool sum_is_read, cudaStream_t stream) {
    bool const aligned =
        device::aligned(parameters.gamma.data, parameters.beta.data, parameters.bias.data);
    auto const access = device::access_of(cols, aligned, x, residual, y, sum);
    // A bias is rare, and costs the others a tenth of their instructions.
    bool const plain =
        !parameters.bias.data && device::plain_of<T>(parameters.gamma, parameters.beta);
    if (access == device::Access::kAligned && plain) {
        auto const run = [&]<class Shape>(Shape, device::Machine const& machine,
                                          device::ShortGrid const& few) {
            return device::launch(short_add_layer_norm_kernel<Shape>, machine, few.grid, stream, y,
                                  sum, x, residual, parameters.gamma.data, parameters.beta.data,
                                  1.f / cols, epsilon, sum_is_read, few.lets_in_early);
        };
        if (auto const done = device::with_short_shape<T>(rows, cols, run)) return *done;
        auto const run_full = [&](device::Machine const& machine, device::Grid const& grid,
                                  bool streams) {
            auto const kernel = streams ? full_add_layer_norm_kernel<T, true>
                                        : full_add_layer_norm_kernel<T, false>;
            return device::launch(kernel, machine, grid, stream, y, sum, x, residual,
                                  parameters.gamma.data, parameters.beta.data, 1.f / cols, epsilon,
                                  sum_is_read);
        };
        if (auto const done = device::with_full_rows<T>(rows, cols, sum_is_read ? 4 : 3, run_full))
            return *done;
    }
    return device::with_row_shape<T, T, device::tuning::kItemsOfTwo>(
        rows, cols, access, plain,
        [&]<class Shape>(Shape, device::Machine const& machine, device::Grid const& grid) {
            return device::launch(add_layer_norm_kernel<T, Shape>, machine, grid, stream, y, sum, x,
                                  residual, parameters, rows, static_cast<int>(cols), epsilon,
                                  sum_is_read);
        });
}

}  // namespace opfuse
