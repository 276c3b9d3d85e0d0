// y = silu((x - mean) / sqrt(variance + epsilon) * gamma + beta), mean and variance of each group,
// the variance around the mean.  A group that fits into a cluster is read once; a larger one is cut
// into parts, and read twice: for its statistics, and to normalise it.  Pure CUDA.
#pragma once
#include "../device/division.cuh"
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
    typename Shape::Team team;
    auto const body = [&](device::Row<T, Shape> const& row, int64_t index) {
        auto const read = [&](auto at) { return row.load(x, at); };
        auto tile = device::make_tile<T>(team, row, read);
        Affine<T> const affine{gamma, beta, index % num_groups * channels, spatial};
        auto starts =
            tile.template beside<true>([&](auto at) { return start_of(affine, at.column); });
        tile.fetch(read, starts);
        auto const [count, mean, squares] =
            team.merge(tile.moments(), share, [&](int warp) { return tile.count_of(warp); });
        Normal const normal{mean, rsqrtf(squares * share + epsilon)};
        auto const write = [&](auto at, auto const& item, Start const& start) {
            row.store(y, at, finish(item, start, affine, normal));
        };
        tile.for_each(write, starts);
    };
    device::for_each_row<Shape>(team, rows, cols, body, x);
}

// What one of a row's parts has of it: slots [first, last); the first part has the edges too.
template <class T, class Shape>
class Part {
  public:
    __device__ Part(device::Row<T, Shape> const& row, int part, int parts) : row_(row) {
        int64_t const width = (row.slots() + parts - 1) / parts;
        first_ = static_cast<int>(min(width * part, int64_t{row.slots()}));
        last_ = static_cast<int>(min(width * (part + 1), int64_t{row.slots()}));
        edges_ = part == 0 ? row.edges() : 0;
    }

    // Calls `use(span, x there)` for all that this thread has, several loads ahead.
    template <class Use>
    __device__ void for_each(T const* x, Use use) const {
        constexpr int kAhead = device::tuning::kItemsOfPart;
        int slot = first_ + threadIdx.x;
        for (int const step = blockDim.x; slot + (kAhead - 1) * step < last_;
             slot += kAhead * step) {
            device::Vec<T, Shape::kVec> items[kAhead];
#pragma unroll
            for (int i = 0; i < kAhead; ++i) items[i] = row_.load(x, row_.span(slot + i * step));
#pragma unroll
            for (int i = 0; i < kAhead; ++i) use(row_.span(slot + i * step), items[i]);
        }
        for (; slot < last_; slot += blockDim.x)
            use(row_.span(slot), row_.load(x, row_.span(slot)));
        if (static_cast<int>(threadIdx.x) < edges_) {
            auto const at = row_.edge(threadIdx.x);
            use(at, row_.load(x, at));
        }
    }

  private:
    device::Row<T, Shape> const& row_;
    int first_, last_, edges_;
};

template <class T, int kSize>
__device__ device::Moments moments_of(device::Vec<T, kSize> const& item) {
    auto const wide = device::widen(item);
    float sum = 0.f, squares = 0.f;
#pragma unroll
    for (float value : wide.at) sum += value;
    float const mean = sum * (1.f / kSize);
#pragma unroll
    for (float value : wide.at) squares += (value - mean) * (value - mean);
    return {static_cast<float>(kSize), mean, squares};
}

template <class T, class Shape>
__global__ void __launch_bounds__(device::tuning::kLanesOfPart, device::tuning::kBlocksOfPart)
    part_moments_kernel(device::Moments* moments,  // [rows, parts]
                        T const* x,                // [rows, cols]
                        int64_t rows, int cols, int parts) {
    typename Shape::Team team;
    device::let_next_start();
    device::wait_for_previous();
    for (int64_t block = blockIdx.x; block < rows * parts; block += gridDim.x) {
        auto const [index, number] = device::divide(block, parts);
        device::Row<T, Shape> const row(x, index, rows, cols);
        Part<T, Shape> const part(row, static_cast<int>(number), parts);
        device::Moments own;
        part.for_each(x,
                      [&](auto, auto const& item) { own = device::merge(own, moments_of(item)); });
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
    int const cols = channels * spatial;
    typename Shape::Team team;
    device::let_next_start();
    device::wait_for_previous();
    for (int64_t block = blockIdx.x; block < rows * parts; block += gridDim.x) {
        auto const [index, number] = device::divide(rows * parts - 1 - block, parts);
        device::Row<T, Shape> const row(x, index, rows, cols);
        Part<T, Shape> const part(row, static_cast<int>(number), parts);
        Affine<T> const affine{gamma, beta, index % num_groups * channels, spatial};
        device::Moments total;
        for (int i = threadIdx.x; i < parts; i += blockDim.x)
            total = device::merge(total, moments[index * parts + i]);
        total = team.merge(total);
        Normal const normal{total.mean, rsqrtf(total.squares / cols + epsilon)};
        part.for_each(x, [&](auto at, auto const& item) {
            row.store(y, at, finish(item, start_of(affine, at.column), affine, normal));
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
        groups.rows, groups.cols(), access, true,
        [&]<class Shape>(Shape, device::Machine const& machine, device::Grid const& grid) {
            if constexpr (Shape::kItems > 0) {
                return device::launch(group_norm_silu_kernel<T, Shape>, machine, grid, stream, y, x,
                                      gamma, beta, static_cast<int>(groups.num_groups),
                                      static_cast<int>(groups.channels),
                                      static_cast<int>(groups.spatial), groups.rows, epsilon);
            } else {
                return launch_parts<T, Shape>(y, x, gamma, beta, groups, epsilon, workspace,
                                              machine, stream);
            }
        });
}

}  // namespace opfuse
