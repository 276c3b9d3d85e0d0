// y = x * rsqrt(mean(x^2) + epsilon) * gamma over the last axis, in fp32.  Pure CUDA.
#pragma once
#include "../device/plan.cuh"
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

// ---- launchers

template <class T>
cudaError_t rms_norm(T* y, T const* x,         // [rows, cols]
                     device::Parameter gamma,  // [cols]
                     int64_t rows, int64_t cols, float epsilon, cudaStream_t stream) {
    auto const access = device::access_of(cols, device::aligned(gamma.data), x, y);
    return device::with_row_shape<T, T, device::tuning::kItemsOfOne>(
        rows, cols, access, device::plain_of<T>(gamma),
        [&]<class Shape>(Shape, device::Machine const& machine, device::Grid const& grid) {
            return device::launch(rms_norm_kernel<T, Shape>, machine, grid, stream, y, x, gamma,
                                  rows, static_cast<int>(cols), epsilon);
        });
}

}  // namespace opfuse
