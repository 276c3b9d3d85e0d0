// probabilities = softmax(scale * scores + mask) over the keys, in fp32 with one rounding.  A row
// whose logits are all -inf, or that holds NaN or +inf, is NaN as in the definition.  Pure CUDA.
#pragma once
#include "../device/math.cuh"
#include "../device/plan.cuh"
#include "launch.h"

namespace opfuse {

// ---- kernels

__device__ inline float negative_infinity() { return -__builtin_inff(); }

// How many of its keys a causal row sees: the first ones.
__device__ inline int visible_keys(int64_t row, int64_t queries, int keys, bool small) {
    int64_t const query =
        small ? static_cast<uint32_t>(row) % static_cast<uint32_t>(queries) : row % queries;
    int64_t const last = query + keys - queries;
    return static_cast<int>(last < 0 ? 0 : last < keys ? last + 1 : keys);
}

// The part of `mask` that a row of scores adds: [keys], or one value.
template <class Index>
__device__ device::Parameter mask_row(Mask const& mask, int64_t row, int64_t element_bytes) {
    int64_t offset = 0;
    Index rest = static_cast<Index>(row);
    for (int axis = mask.axes - 1; axis >= 0; --axis) {
        Index const size = static_cast<Index>(mask.sizes[axis]);
        Index const outer = axis > 0 ? rest / size : 0;
        offset += static_cast<int64_t>(rest - outer * size) * mask.steps[axis];
        rest = outer;
    }
    int64_t const bytes = mask.values.is_float ? sizeof(float) : element_bytes;
    return {static_cast<char const*>(mask.values.data) + offset * bytes, mask.values.is_float};
}

template <class T, class Shape>
__global__ void __launch_bounds__(Shape::kLanes)
    masked_softmax_kernel(T* probabilities, T const* scores,  // [rows, keys]
                          __grid_constant__ Mask const mask, float scale, bool causal,
                          int64_t queries, int64_t rows, int keys) {
    device::Team team;
    bool const small = rows <= 0xffffffffLL;
    auto const body = [&](device::Row<T, Shape> const& row, int64_t index) {
        int const visible = causal ? visible_keys(index, queries, keys, small) : keys;
        device::Parameter added{};
        if (mask.values.data && index < rows)
            added = small ? mask_row<uint32_t>(mask, index, sizeof(T))
                          : mask_row<int64_t>(mask, index, sizeof(T));
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
    return device::with_row_shape<float, T, device::tuning::kItemsOfSoftmax>(
        rows, keys, access,
        [&]<class Shape>(Shape, device::Machine const& machine, device::Grid const& grid) {
            return device::launch(masked_softmax_kernel<T, Shape>, machine, grid, stream,
                                  probabilities, scores, mask, scale, causal, queries, rows,
                                  static_cast<int>(keys));
        });
}

}  // namespace opfuse
