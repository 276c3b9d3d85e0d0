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

template <class T, int kSize>
__device__ device::Vec<T, kSize> finish(device::Vec<T, kSize> item, Start start,
                                        Affine<T> const& affine, Normal normal) {
    auto const activated = [&](T value) {
        float const unit = (device::to_float(value) - normal.mean) * normal.scale;
        float const shifted = unit * start.weights.x + start.weights.y;
        return device::from_float<T>(device::activate<device::Activation::kSilu>(shifted));
    };
    if (start.left >= kSize) {
#pragma unroll
        for (int i = 0; i < kSize; ++i) item.at[i] = activated(item.at[i]);
        return item;
    }
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
        if (start.left == 0) {
            ++start.channel;
            start.weights = affine.of(start.channel);
            start.left = affine.spatial;
        }
        --start.left;
        item.at[i] = activated(item.at[i]);
    }
    return item;
}

template <class T, class Shape>
__global__ void __launch_bounds__(Shape::kLanes, Shape::kBlocks)
    group_norm_silu_kernel(T* y, T const* x,  // [rows, cols]
                           device::Parameter gamma, device::Parameter beta, int num_groups,
                           int channels, int spatial, int64_t rows, float epsilon) {
    int const cols = channels * spatial;
    device::Team team;
    auto const body = [&](device::Row<T, Shape> const& row, int64_t index) {
        auto const read = [&](auto at) { return row.load(x, at); };
        auto tile = device::make_tile<T>(team, row, read);
        Affine<T> const affine{gamma, beta, index % num_groups * channels, spatial};
        auto const starts =
            tile.template beside<true>([&](auto at) { return start_of(affine, at.column); });
        tile.fill(read);
        float const mean = team.sum(tile.sum([](float a) { return a; })) / cols;
        auto const square = [mean](float a) { return (a - mean) * (a - mean); };
        Normal const normal{mean, rsqrtf(team.sum(tile.sum(square)) / cols + epsilon)};
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
    int first, last, columns;

    template <class Row>
    __device__ Part(Row const& row, int part, int parts, int step) {
        int const tiles = (row.slots() + step - 1) / step;
        int64_t const width = int64_t{(tiles + parts - 1) / parts} * step;
        first = static_cast<int>(min(width * part, int64_t{row.slots()}));
        last = static_cast<int>(min(width * (part + 1), int64_t{row.slots()}));
        columns = (last - first) * Row::kVec + (part == 0 ? row.edges() : 0);
    }
};

// Calls `body(tile, columns so far, columns of the tile)` for the tiles of a part.
template <class T, class Shape, class Read, class Body>
__device__ void for_each_tile(device::Team const& team, device::Row<T, Shape> const& row,
                              Part const& part, int step, Read read, Body body) {
    int before = 0;
    for (int first = part.first; first < part.last; first += step) {
        int const last = min(first + step, part.last);
        device::RowTile<T, T, Shape, Read> tile(team, row, read, first, last);
        int const here = (last - first) * Shape::kVec + (first == 0 ? row.edges() : 0);
        body(tile, before, here);
        before += here;
    }
}

template <class T, class Shape>
__global__ void __launch_bounds__(device::tuning::kLanesOfPart, device::tuning::kBlocksOfPart)
    part_moments_kernel(Moments* moments,  // [rows, parts]
                        T const* x,        // [rows, cols]
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
        Moments total{0.f, 0.f};
        auto const add = [&](auto& tile, int before, int here) {
            tile.fill(read);
            float const mean = team.sum(tile.sum([](float a) { return a; })) / here;
            auto const square = [mean](float a) { return (a - mean) * (a - mean); };
            float const squares = team.sum(tile.sum(square));
            float const apart = mean - total.mean;
            float const share = static_cast<float>(here) / (before + here);
            total.squares += squares + apart * apart * before * share;
            total.mean += apart * share;
        };
        for_each_tile(team, row, part, step, read, add);
        if (threadIdx.x == 0) moments[block] = total;
    }
}

// One block a row.
template <class T, class Shape>
__global__ void __launch_bounds__(device::tuning::kLanesOfPart)
    merge_parts_kernel(Normal* normals,         // [rows]
                       Moments const* moments,  // [rows, parts]
                       T const* x,              // [rows, cols]
                       int64_t rows, int cols, int parts, float epsilon) {
    device::Team team;
    device::let_next_start();
    device::wait_for_previous();
    int const step = blockDim.x * Shape::kItems;
    for (int64_t index = blockIdx.x; index < rows; index += gridDim.x) {
        device::Row<T, Shape> const row(x, index, rows, cols);
        Moments const* own = moments + index * parts;
        float total = 0.f, squares = 0.f;
        for (int i = threadIdx.x; i < parts; i += blockDim.x)
            total += own[i].mean * Part(row, i, parts, step).columns;
        float const mean = team.sum(total) / cols;
        for (int i = threadIdx.x; i < parts; i += blockDim.x) {
            float const apart = own[i].mean - mean;
            squares += own[i].squares + apart * apart * Part(row, i, parts, step).columns;
        }
        squares = team.sum(squares);
        if (threadIdx.x == 0) normals[index] = {mean, rsqrtf(squares / cols + epsilon)};
    }
}

// Starts with the parts that were read last: they are in L2 still.
template <class T, class Shape>
__global__ void __launch_bounds__(device::tuning::kLanesOfPart, device::tuning::kBlocksOfPart)
    finish_parts_kernel(T* y, T const* x,       // [rows, cols]
                        Normal const* normals,  // [rows]
                        device::Parameter gamma, device::Parameter beta, int num_groups,
                        int channels, int spatial, int64_t rows, int parts) {
    int const cols = channels * spatial, step = blockDim.x * Shape::kItems;
    device::Team team;
    device::let_next_start();
    device::wait_for_previous();
    for (int64_t block = blockIdx.x; block < rows * parts; block += gridDim.x) {
        int64_t const own = rows * parts - 1 - block, index = own / parts;
        device::Row<T, Shape> const row(x, index, rows, cols);
        Part const part(row, static_cast<int>(own - index * parts), parts, step);
        Affine<T> const affine{gamma, beta, index % num_groups * channels, spatial};
        Normal const normal = normals[index];
        auto const read = [&](auto at) { return row.load(x, at); };
        auto const write = [&](auto& tile, int, int) {
            auto const starts =
                tile.template beside<true>([&](auto at) { return start_of(affine, at.column); });
            tile.fill(read);
            auto const store = [&](auto at, auto const& item, Start const& start) {
                row.store(y, at, finish(item, start, affine, normal));
            };
            tile.for_each(store, starts);
        };
        for_each_tile(team, row, part, step, read, write);
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
    auto* const moments = static_cast<Moments*>(workspace);
    auto* const normals = reinterpret_cast<Normal*>(moments + groups.rows * parts);
    device::Grid grid{.blocks = groups.rows * parts, .threads = dim3(device::tuning::kLanesOfPart)};
    cudaError_t status = device::launch(part_moments_kernel<T, Shape>, machine, grid, stream,
                                        moments, x, groups.rows, cols, parts);
    if (status != cudaSuccess) return status;
    device::Grid const one_a_row{.blocks = groups.rows, .threads = grid.threads};
    status = device::launch(merge_parts_kernel<T, Shape>, machine, one_a_row, stream, normals,
                            moments, x, groups.rows, cols, parts, epsilon);
    if (status != cudaSuccess) return status;
    return device::launch(finish_parts_kernel<T, Shape>, machine, grid, stream, y, x, normals,
                          gamma, beta, static_cast<int>(groups.num_groups),
                          static_cast<int>(groups.channels), static_cast<int>(groups.spatial),
                          groups.rows, parts);
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
