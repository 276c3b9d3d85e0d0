// probabilities = softmax(scale * scores + mask) over the keys, in fp32 with one rounding.  A row
// whose logits are all -inf, or that holds NaN or +inf, is NaN as in the definition.  Pure CUDA.
#pragma once
#include <limits>

#include "../device/division.cuh"
#include "../device/math.cuh"
#include "../device/plan.cuh"
#include "launch.h"

namespace opfuse {

// ---- kernels

__device__ inline float negative_infinity() { return -__builtin_inff(); }

// Where a row stands among those of scores [..., queries, keys] and of the mask.
struct Rows {
    int64_t queries, keys;
    Mask mask;
    bool causal;
    bool small;  // fewer rows than 2^31, and the divisors hold
    device::Divisor by_queries, by_size[kMaxMaskAxes];

    // How many of its keys a causal row sees: the first ones.
    __device__ int visible_keys(int64_t row) const {
        if (!causal) return static_cast<int>(keys);
        int64_t const query = small ? by_queries.remainder(row) : row % queries;
        int64_t const last = query + keys - queries;
        return static_cast<int>(last < 0 ? 0 : last < keys ? last + 1 : keys);
    }

    // The part of the mask that a row adds: [keys], or one value.
    __device__ device::Parameter mask_row(int64_t row, int64_t element_bytes) const {
        int64_t offset = 0;
        for (int axis = mask.axes - 1; axis >= 0; --axis) {
            int64_t const outer = small ? by_size[axis].quotient(row) : row / mask.sizes[axis];
            offset += (row - outer * mask.sizes[axis]) * mask.steps[axis];
            row = outer;
        }
        int64_t const bytes = mask.values.is_float ? sizeof(float) : element_bytes;
        return {static_cast<char const*>(mask.values.data) + offset * bytes, mask.values.is_float};
    }
};

template <class T, class Shape>
__global__ void __launch_bounds__(Shape::kLanes)
    masked_softmax_kernel(T* probabilities, T const* scores,  // [rows, keys]
                          __grid_constant__ Rows const where, float scale, int64_t rows, int keys) {
    typename Shape::Team team;
    Mask const& mask = where.mask;
    auto const body = [&](device::Row<T, Shape> const& row, int64_t index) {
        int const visible = where.visible_keys(index);
        device::Parameter added{};
        if (mask.values.data && index < rows) added = where.mask_row(index, sizeof(T));
        bool const shared = !added.data || mask.one_key;
        float const constant =
            added.data && shared ? device::load_parameter<T, 1>(added, 0).at[0] : 0.f;
        // What is not seen is not read.
        auto const read = [&](auto at) {
            return at.column < visible ? row.load(scores, at) : device::Vec<T, at.kSize>{};
        };
        auto const logits = [&](auto at, auto const& item, auto const& masks) {
            device::Vec<float, at.kSize> out;
#pragma unroll
            for (int i = 0; i < at.kSize; ++i)
                out.at[i] = fmaf(device::to_float(item.at[i]), scale, masks.at[i]);
            if (at.column + at.kSize > visible)
#pragma unroll
                for (int i = 0; i < at.kSize; ++i)
                    if (at.column + i >= visible) out.at[i] = negative_infinity();
            return out;
        };
        auto const with_mask = [&](auto at, auto const& item) {
            return logits(at, item, row.parameter(added, at).floats());
        };
        auto const without = [&](auto at, auto const& item) {
            device::Vec<float, at.kSize> same;
#pragma unroll
            for (float& value : same.at) value = constant;
            return logits(at, item, same);
        };
        auto const again = [&](auto at) {
            return shared ? without(at, read(at)) : with_mask(at, read(at));
        };
        auto tile = device::make_tile<float>(team, row, again);
        auto const nothing = [](auto, auto const&) {};
        if (shared)
            tile.fill(read, without, nothing);
        else
            tile.fill(read, with_mask, nothing);
        float highest = negative_infinity();
        tile.for_each([&](auto at, auto const& item) {
#pragma unroll
            for (int i = 0; i < at.kSize; ++i) highest = fmaxf(highest, item.at[i]);
        });
        highest = team.maximum(highest);
        auto const weight = [&](float logit) { return device::fast_exp(logit - highest); };
        bool const weighed = tile.replace(weight);
        auto const weight_of = [&](float kept) { return weighed ? kept : weight(kept); };
        float const share = 1.f / team.sum(tile.sum(weight_of));
        tile.for_each([&](auto at, auto const& item) {
            device::Vec<float, at.kSize> shares;
#pragma unroll
            for (int i = 0; i < at.kSize; ++i) shares.at[i] = weight_of(item.at[i]) * share;
            row.store(probabilities, at, device::narrow<T>(shares));
        });
    };
    device::for_each_row<Shape>(team, rows, keys, body, scores);
}

// ---- launchers

template <class T>
cudaError_t masked_softmax(T* probabilities, T const* scores,  // [rows, keys]
                           Mask const& mask, float scale, bool causal, int64_t queries,
                           int64_t rows, int64_t keys, cudaStream_t stream) {
    bool const aligned = mask.one_key || device::aligned(mask.values.data);
    auto const access = device::access_of(keys, aligned, scores, probabilities);
    bool const small = rows <= std::numeric_limits<int32_t>::max();
    Rows where{queries, keys, mask, causal, small, {}, {}};
    if (small && rows > 0) {
        where.by_queries = device::Divisor(queries);
        for (int i = 0; i < mask.axes; ++i) where.by_size[i] = device::Divisor(mask.sizes[i]);
    }
    return device::with_row_shape<float, T, device::tuning::kItemsOfSoftmax>(
        rows, keys, access, device::plain_of<T>(mask.values),
        [&]<class Shape>(Shape, device::Machine const& machine, device::Grid const& grid) {
            return device::launch(masked_softmax_kernel<T, Shape>, machine, grid, stream,
                                  probabilities, scores, where, scale, rows,
                                  static_cast<int>(keys));
        });
}

}  // namespace opfuse
