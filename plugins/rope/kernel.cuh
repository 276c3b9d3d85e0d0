// y = x * cos + rotate(x) * sin over the first elements of each head, the rest copied.  Pure CUDA.
#pragma once
#include <cuda_runtime.h>

#include <limits>

#include "../device/launch.cuh"
#include "../device/rotary.cuh"
#include "launch.h"

namespace opfuse {

// ---- kernels

inline constexpr int kRopeThreads = 128;  // of a block

// One thread turns a pair of vectors of a head: two heads that share their cos and sin took 90.6 us
// where one took 89.8 (4x32x4096x128, fp16 on H100).  kLarge: x and y are, together
// (device::kLargeBytes).
template <class T, bool kInterleaved, int kVec, bool kLarge>
__global__ void __launch_bounds__(kRopeThreads)
    rope_kernel(T* y, T const* x, device::Parameter cos, device::Parameter sin, RopeShape shape,
                int64_t positions, int64_t threads) {
    using device::Vec;
    device::let_next_start();
    int64_t const thread = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (thread >= threads) return;
    int const vectors = shape.size / kVec, turning = shape.turning / kVec;
    int const pairs = (vectors + 1) / 2;
    auto const [work, pair_at] = device::divide(thread, pairs);
    auto const [outer, inner] =
        device::divide(work, shape.repeats_inside ? shape.repeats : positions);
    int const pair = static_cast<int>(pair_at);
    int64_t position = shape.repeats_inside ? outer : inner;
    int64_t row = (shape.repeats_inside ? inner : outer) * shape.repeat_stride;
    int64_t cos_row = 0, sin_row = 0;
    for (int i = shape.axis_count - 1; i >= 0; --i) {
        auto const& axis = shape.axes[i];
        auto const [left, at] = device::divide(position, axis.size);
        position = left;
        row += at * axis.stride;
        cos_row += at * axis.cos_stride;
        sin_row += at * axis.sin_stride;
    }
    auto const place = device::place_of<kInterleaved>(pair, turning);
    bool const turns = pair < turning / 2, has_b = place.b < vectors;
    T const* head = x + row * shape.size;
    if constexpr (device::tuning::kPrefetch && !kLarge) {
        if (place.a % 2 == 0) device::prefetch(head + place.a * kVec);
        if (place.b % 2 == 0 && has_b) device::prefetch(head + place.b * kVec);
    }
    device::wait_for_previous();
    Vec<T, kVec> a = device::load_large<kVec, kLarge>(head, place.a), b;
    if (has_b) b = device::load_large<kVec, kLarge>(head, place.b);
    if (turns) {
        auto const c = device::load_pair<T, kVec>(cos, cos_row * shape.turning, place);
        auto const s = device::load_pair<T, kVec>(sin, sin_row * shape.turning, place);
        device::Pair<kVec> both{device::widen(a), device::widen(b)};
        device::turn<kInterleaved>(both, c, s);
        a = device::narrow<T>(both.a);
        b = device::narrow<T>(both.b);
    }
    T* out = y + row * shape.size;
    device::store_large<kLarge>(out, place.a, a);
    if (has_b) device::store_large<kLarge>(out, place.b, b);
}

// ---- launchers

template <class T, bool kInterleaved, int kVec, bool kLarge>
cudaError_t launch_rope(T* y, T const* x, device::Parameter cos, device::Parameter sin,
                        RopeShape const& shape, cudaStream_t stream) {
    int64_t const positions = shape.positions();
    int64_t const pairs = (shape.size / kVec + 1) / 2;
    int64_t const threads = pairs * positions * shape.repeats;
    int64_t const blocks = (threads + kRopeThreads - 1) / kRopeThreads;
    if (blocks > std::numeric_limits<int32_t>::max()) return cudaErrorInvalidValue;
    device::Machine machine;
    if (cudaError_t const status = device::current_machine(machine); status != cudaSuccess)
        return status;
    device::Grid const grid{.blocks = blocks, .threads = dim3(kRopeThreads)};
    return device::launch(rope_kernel<T, kInterleaved, kVec, kLarge>, machine, grid, stream, y, x,
                          cos, sin, shape, positions, threads);
}

template <class T, bool kInterleaved>
cudaError_t launch_rope(T* y, T const* x, device::Parameter cos, device::Parameter sin,
                        RopeShape const& shape, cudaStream_t stream) {
    constexpr int kVec = device::kVecBytes / sizeof(T);
    bool const vectors = device::aligned(y, x, cos.data, sin.data) && shape.size % kVec == 0 &&
                         shape.turning % (2 * kVec) == 0;
    if (!vectors) return launch_rope<T, kInterleaved, 1, false>(y, x, cos, sin, shape, stream);
    int64_t const heads = shape.positions() * shape.repeats;
    if (2 * heads * shape.size * int64_t{sizeof(T)} < device::kLargeBytes)
        return launch_rope<T, kInterleaved, kVec, false>(y, x, cos, sin, shape, stream);
    return launch_rope<T, kInterleaved, kVec, true>(y, x, cos, sin, shape, stream);
}

template <class T>
cudaError_t rope(T* y, T const* x,                              // [..., size]
                 device::Parameter cos, device::Parameter sin,  // [..., turning]
                 RopeShape const& shape, bool interleaved, cudaStream_t stream) {
    if (shape.turning % 2 != 0 || shape.turning > shape.size) return cudaErrorInvalidValue;
    if (shape.positions() * shape.repeats == 0 || shape.size == 0) return cudaSuccess;
    auto const launch = interleaved ? launch_rope<T, true> : launch_rope<T, false>;
    return launch(y, x, cos, sin, shape, stream);
}

}  // namespace opfuse
