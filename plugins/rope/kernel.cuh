// y = x * cos + rotate(x) * sin over the first elements of each head, the rest copied.  Pure CUDA.
#pragma once
#include <cuda_runtime.h>

#include <algorithm>
#include <limits>
#include <type_traits>

#include "../device/division.cuh"
#include "../device/launch.cuh"
#include "../device/rotary.cuh"
#include "launch.h"

namespace opfuse {

// ---- kernels

// Threads of a block, and such blocks of a multiprocessor: in an experiment 4x32x4096x128 (fp16 on
// H100) took 90.4 us with 128, 90.0 with 256, 89.3 with 512, and with three such blocks instead of
// four 1.3 more.  Few vectors are spread over all multiprocessors.
inline constexpr int kRopeThreads = 512, kRopeBlocks = 4, kFewRopeThreads = 128;
inline constexpr int64_t kFewRopeVectors = 1 << 20;

// How the kernel walks over x, vector by vector, and which rows of cos and sin belong to a head.
struct RopeWalk {
    struct Axis {
        device::Divider size;
        int64_t cos_stride = 0, sin_stride = 0;  // in rows
    };

    RopeWalk(RopeShape const& shape, int vector_size)
        : vectors(shape.heads() * (shape.size / vector_size)),
          turning(shape.turning / vector_size),
          by_head(shape.size / vector_size, vectors),
          axis_count(shape.axis_count) {
        for (int i = 0; i < axis_count; ++i) {
            auto const& axis = shape.axes[axis_count - 1 - i];
            axes[i] = {device::Divider(axis.size, vectors), axis.cos_stride, axis.sin_stride};
        }
    }

    int64_t vectors;          // of x
    int turning;              // vectors of a head that turn
    device::Divider by_head;  // vectors of a head
    int axis_count;
    Axis axes[RopeShape::kMaxAxes];  // innermost first
};

enum class Angles { kSame, kFloat, kAny };  // their type: that of x, float, or said at run time

// What is known when it is compiled.  kFew: all vectors are in flight at once, so that what comes
// ahead of the wait costs nothing; else the first load comes first.  kVec > 1: vectors, not
// elements, of which there are fewer than 2^31.
template <class Type, bool kIsInterleaved, int kVecSize, Angles kAngleType, bool kIsFew>
struct RopeCase {
    using T = Type;
    using Index = std::conditional_t<(kVecSize > 1), uint32_t, int64_t>;
    static constexpr bool kInterleaved = kIsInterleaved, kFew = kIsFew;
    static constexpr int kVec = kVecSize;
    static constexpr Angles kAngles = kAngleType;
};

template <class Index>
struct AngleRows {
    Index cos, sin;
};

template <class Index>
__device__ AngleRows<Index> angle_rows(RopeWalk const& walk, Index head) {
    AngleRows<Index> rows{0, 0};
    auto const add = [&](RopeWalk::Axis const& axis, Index at) {
        rows.cos += at * static_cast<Index>(axis.cos_stride);
        rows.sin += at * static_cast<Index>(axis.sin_stride);
    };
    constexpr int kUnrolled = sizeof(Index) == sizeof(uint32_t) ? RopeShape::kMaxAxes : 1;
#pragma unroll kUnrolled
    for (int i = 0; i < RopeShape::kMaxAxes; ++i) {
        if (i + 1 >= walk.axis_count) {
            add(walk.axes[i], head);
            break;
        }
        auto const [outer, at] = walk.axes[i].size.divide(head);
        add(walk.axes[i], at);
        head = outer;
    }
    return rows;
}

// A thread makes one vector of y: those of a warp lie one behind another, and the other half of a
// head is loaded again, from L1.  A thread that turned a pair of vectors took 90.7 us, two pairs
// 91.7; loads that stream (ld.global.cs) 92.5.
template <class Case, class T = typename Case::T>
__global__ void __launch_bounds__(kRopeThreads, kRopeBlocks)
    rope_kernel(T* y, T const* x, device::Parameter cos, device::Parameter sin,
                __grid_constant__ RopeWalk const walk) {
    using Index = typename Case::Index;
    constexpr int kVec = Case::kVec;
    device::let_next_start();
    Index const vector = static_cast<Index>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (vector >= static_cast<Index>(walk.vectors)) return;
    device::Vec<T, kVec> own;
    if constexpr (!Case::kFew) {
        device::wait_for_previous();
        own = device::load<kVec>(x, vector);
    }
    auto const [head, place] = walk.by_head.divide(vector);
    int const at = static_cast<int>(place);
    device::Turn<Case::kInterleaved, kVec> const turn(at, walk.turning);
    auto const rows = angle_rows<Index>(walk, head);
    if constexpr (Case::kFew) {
        if (device::tuning::kPrefetch && vector % 2 == 0) device::prefetch(x + vector * kVec);
        device::wait_for_previous();
        own = device::load<kVec>(x, vector);
    }
    if (at < walk.turning) {
        if constexpr (Case::kAngles != Angles::kAny)
            cos.is_float = sin.is_float = Case::kAngles == Angles::kFloat;
        auto const other = turn.other(x, vector, own);
        auto const c = device::load_raw<T, kVec>(cos, rows.cos * walk.turning + at);
        auto const s = device::load_raw<T, kVec>(sin, rows.sin * walk.turning + at);
        own = turn.apply(own, other, c.floats(), s.floats());
    }
    device::store(y, vector, own);
}

// ---- launchers

template <class Case, class T = typename Case::T>
cudaError_t launch_rope(T* y, T const* x, device::Parameter cos, device::Parameter sin,
                        RopeWalk const& walk, cudaStream_t stream) {
    int const threads = Case::kFew ? kFewRopeThreads : kRopeThreads;
    int64_t const blocks = (walk.vectors + threads - 1) / threads;
    if (blocks > std::numeric_limits<int32_t>::max()) return cudaErrorInvalidValue;
    device::Machine machine;
    if (cudaError_t const status = device::current_machine(machine); status != cudaSuccess)
        return status;
    device::Grid const grid{.blocks = blocks,
                            .threads = dim3(threads),
                            .most_share = Case::kFew ? device::tuning::kMostShareOfVectors : 0};
    return device::launch(rope_kernel<Case>, machine, grid, stream, y, x, cos, sin, walk);
}

template <class T, bool kInterleaved>
cudaError_t launch_rope(T* y, T const* x, device::Parameter cos, device::Parameter sin,
                        RopeShape const& shape, cudaStream_t stream) {
    constexpr int kVec = device::kVecBytes / sizeof(T);
    auto const with_case = [&]<int kSize, Angles kAngles, bool kFew>() {
        return launch_rope<RopeCase<T, kInterleaved, kSize, kAngles, kFew>>(
            y, x, cos, sin, RopeWalk(shape, kSize), stream);
    };
    int64_t const vectors = shape.heads() * (shape.size / kVec);
    bool const aligned = device::aligned(y, x, cos.data, sin.data) && shape.size % kVec == 0 &&
                         shape.turning % (2 * kVec) == 0;
    bool const alike = std::is_same_v<T, float> || cos.is_float == sin.is_float;
    if (!aligned || !alike || !device::Divider::fits_in(vectors))
        return with_case.template operator()<1, Angles::kAny, false>();
    auto const with_angles = [&]<Angles kAngles>() {
        return vectors <= kFewRopeVectors ? with_case.template operator()<kVec, kAngles, true>()
                                          : with_case.template operator()<kVec, kAngles, false>();
    };
    if constexpr (!std::is_same_v<T, float>)
        if (cos.is_float) return with_angles.template operator()<Angles::kFloat>();
    return with_angles.template operator()<Angles::kSame>();
}

template <class T>
cudaError_t rope(T* y, T const* x,                              // [..., size]
                 device::Parameter cos, device::Parameter sin,  // [..., turning]
                 RopeShape const& shape, bool interleaved, cudaStream_t stream) {
    if (shape.turning % 2 != 0 || shape.turning > shape.size) return cudaErrorInvalidValue;
    if (shape.heads() == 0 || shape.size == 0) return cudaSuccess;
    auto const launch = interleaved ? launch_rope<T, true> : launch_rope<T, false>;
    return launch(y, x, cos, sin, shape, stream);
}

}  // namespace opfuse
