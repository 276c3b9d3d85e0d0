// y = silu((x - mean) / sqrt(variance + epsilon) * gamma + beta), mean and variance of each group,
// the variance around the mean.  A group that fits into a cluster is read once; a larger one is cut
// into parts, and read twice: for its statistics, and to normalise it.  Pure CUDA.
#pragma once
#include "../device/math.cuh"
#include "../device/plan.cuh"
#include "launch.h"

namespace opfuse {

// ---- kernels

// gamma and beta of a group's channels.
template <class T>
struct Affine {
    device::Parameter gamma, beta;  // of all channels
    int64_t first;                  // the group's first channel
    int spatial;

    __device__ float2 of(int channel) const {
        return {device::load_parameter<T, 1>(gamma, first + channel).at[0],
                device::load_parameter<T, 1>(beta, first + channel).at[0]};
    }
};

// Where a span begins: its channel, that channel's columns from here on, its gamma and beta.
struct Start {
    int channel, left;
    float2 weights;
};

template <class T>
__device__ Start start_of(Affine<T> const& affine, int column) {
    int const channel = column / affine.spatial;
    return {channel, (channel + 1) * affine.spatial - column, affine.of(channel)};
}

// Of a group: the mean, and 1 / sqrt(variance + epsilon).
struct Normal {
    float mean, scale;
};

template <class T, int kSize>
__device__ device::Vec<T, kSize> finish(device::Vec<T, kSize> const& item, Start start,
                                        Affine<T> const& affine, Normal normal) {
    auto wide = device::widen(item);
    auto const activate = [&](float& value) {
        float const shifted = (value - normal.mean) * normal.scale * start.weights.x;
        value = device::activate<device::Activation::kSilu, T>(shifted + start.weights.y);
    };
    if (start.left >= kSize) {
#pragma unroll
        for (float& value : wide.at) activate(value);
        return device::narrow<T>(wide);
    }
#pragma unroll
    for (float& value : wide.at) {
        if (start.left == 0) {
            ++start.channel;
            start.weights = affine.of(start.channel);
            start.left = affine.spatial;
        }
        --start.left;
        activate(value);
    }
    return device::narrow<T>(wide);
}

template <class T, class Shape>
__global__ void __launch_bounds__(Shape::kLanes, Shape::kBlocks)
    group_norm_silu_kernel(T* y, T const* x,  // [rows, cols]
                           device::Parameter gamma, device::Parameter beta, int num_groups,
                           int channels, int spatial, int64_t rows, float epsilon) {
    int const cols = channels * spatial;
    float const share = device::settled(1.f / cols);
    device::Team team;
    auto const body = [&](device::Row<T, Shape> const& row, int64_t index) {
        auto const read = [&](auto at) { return row.load(x, at); };
        auto tile = device::make_tile<T>(team, row, read);
        Affine<T> const affine{gamma, beta, index % num_groups * channels, spatial};
        auto const starts =
            tile.template beside<true>([&](auto at) { return start_of(affine, at.column); });
        tile.fill(read);
        float const mean = team.sum(tile.sum([](float a) { return a; })) * share;
        auto const square = [mean](float a) { return (a - mean) * (a - mean); };
        Normal const normal{mean, rsqrtf(team.sum(tile.sum(square)) * share + epsilon)};
        auto const write = [&](auto at, auto const& item, Start const& start) {
            row.store(y, at, finish(item, start, affine, normal));
        };
        tile.for_each(write, starts);
    };
    device::for_each_row<Shape>(team, rows, cols, body, x);
}

// What one of a row's parts has of it: slots [first, last), whole tiles of `step` slots; the first
// part has the edges too.
struct Part {
    int first, last;

    template <class Row>
    __device__ Part(Row const& row, int part, int parts, int step) {
        int const tiles = (row.slots() + step - 1) / step;
        int64_t const width = int64_t{(tiles + parts - 1) / parts} * step;
        first = static_cast<int>(min(width * part, int64_t{row.slots()}));
        last = static_cast<int>(min(width * (part + 1), int64_t{row.slots()}));
    }
};

// Calls `body(tile)` for the tiles of a part.
template <class T, class Shape, class Read, class Body>
__device__ void for_each_tile(device::Team const& team, device::Row<T, Shape> const& row,
                              Part const& part, int step, Read read, Body body) {
    for (int first = part.first; first < part.last; first += step) {
        device::RowTile<T, T, Shape, Read> tile(team, row, read, first,
                                                min(first + step, part.last));
        body(tile);
    }
}

template <class T, class Shape>
__global__ void __launch_bounds__(device::tuning::kLanesOfPart, device::tuning::kBlocksOfPart)
    part_moments_kernel(device::Moments* moments,  // [rows, parts]
                        T const* x,                // [rows, cols]
                        int64_t rows, int cols, int parts) {
    device::Team team;
    device::let_next_start();
    device::wait_for_previous();
    int const step = blockDim.x * Shape::kItems;
    for (int64_t block = blockIdx.x; block < rows * parts; block += gridDim.x) {
        int64_t const index = block / parts;
        device::Row<T, Shape> const row(x, index, rows, cols);
        Part const part(row, static_cast<int>(block - index * parts), parts, step);
        auto const read = [&](auto at) { return row.load(x, at); };
        device::Moments own;
        for_each_tile(team, row, part, step, read, [&](auto& tile) {
            tile.fill(read);
            own = device::merge(own, tile.moments());
        });
        own = team.merge(own);
        if (threadIdx.x == 0) moments[block] = own;
    }
}

// Starts with the parts that were read last: they are in L2 still.
template <class T, class Shape>
__global__ void __launch_bounds__(device::tuning::kLanesOfPart, device::tuning::kBlocksOfPart)
    finish_parts_kernel(T* y, T const* x,                // [rows, cols]
                        device::Moments const* moments,  // [rows, parts]
                        device::Parameter gamma, device::Parameter beta, int num_groups,
                        int channels, int spatial, int64_t rows, int parts, float epsilon) {
    int const cols = channels * spatial, step = blockDim.x * Shape::kItems;
    device::Team team;
    device::let_next_start();
    device::wait_for_previous();
    for (int64_t block = blockIdx.x; block < rows * parts; block += gridDim.x) {
        int64_t const own = rows * parts - 1 - block, index = own / parts;
        device::Row<T, Shape> const row(x, index, rows, cols);
        Part const part(row, static_cast<int>(own - index * parts), parts, step);
        Affine<T> const affine{gamma, beta, index % num_groups * channels, spatial};
        device::Moments total;
        for (int i = threadIdx.x; i < parts; i += blockDim.x)
            total = device::merge(total, moments[index * parts + i]);
        total = team.merge(total);
        Normal const normal{total.mean, rsqrtf(total.squares / cols + epsilon)};
        auto const read = [&](auto at) { return row.load(x, at); };
        for_each_tile(team, row, part, step, read, [&](auto& tile) {
            auto const starts =
                tile.template beside<true>([&](auto at) { return start_of(affine, at.column); });
            tile.fill(read);
            auto const store = [&](auto at, auto const& item, Start const& start) {
                row.store(y, at, finish(item, start, affine, normal));
            };
            tile.for_each(store, starts);
        });
    }
}

// ---- launchers

template <class T, class Shape>
cudaError_t launch_parts(T* y, T const* x,  // [rows, cols]
                         device::Parameter gamma, device::Parameter beta, Groups const& groups,
                         float epsilon, void* workspace, device::Machine const& machine,
                         cudaStream_t stream) {
    if (!workspace) return cudaErrorInvalidValue;
    int const parts = static_cast<int>(parts_of(groups)), cols = static_cast<int>(groups.cols());
    auto* const moments = static_cast<device::Moments*>(workspace);
    device::Grid grid{.blocks = groups.rows * parts, .threads = dim3(device::tuning::kLanesOfPart)};
    cudaError_t const status = device::launch(part_moments_kernel<T, Shape>, machine, grid, stream,
                                              moments, x, groups.rows, cols, parts);
    if (status != cudaSuccess) return status;
    return device::launch(finish_parts_kernel<T, Shape>, machine, grid, stream, y, x, moments,
                          gamma, beta, static_cast<int>(groups.num_groups),
                          static_cast<int>(groups.channels), static_cast<int>(groups.spatial),
                          groups.rows, parts, epsilon);
}

template <class T>
cudaError_t group_norm_silu(T* y, T const* x,                     // [rows, cols]
                            device::Parameter gamma,              // [num_groups * channels]
                            device::Parameter beta,               // [num_groups * channels]
                            Groups const& groups, float epsilon,  //
                            void* workspace, cudaStream_t stream) {
    auto const access = device::access_of(groups.cols(), true, x, y);
    return device::with_row_shape<T, T, device::tuning::kItemsOfOne>(
        groups.rows, groups.cols(), access,
        [&]<class Shape>(Shape, device::Machine const& machine, device::Grid const& grid) {
            if constexpr (Shape::kItems > 0) {
                return device::launch(group_norm_silu_kernel<T, Shape>, machine, grid, stream, y, x,
                                      gamma, beta, static_cast<int>(groups.num_groups),
                                      static_cast<int>(groups.channels),
                                      static_cast<int>(groups.spatial), groups.rows, epsilon);
            } else {
                constexpr int kItems =
                    Shape::kVec > 1 ? device::tuning::kItemsOfPart : device::tuning::kScalarItems;
                using Registers = device::RowShape<Shape::kVec, Shape::kShifted, kItems>;
                return launch_parts<T, Registers>(y, x, gamma, beta, groups, epsilon, workspace,
                                                  machine, stream);
            }
        });
}

}  // namespace opfuse
