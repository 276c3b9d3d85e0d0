// Kernels over rows: who works on what, and a row that is read once and kept in registers.
#pragma once
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <limits>

#include "vec.cuh"

namespace opfuse::device {

// One thread's part of a row: vectors threadIdx.x, threadIdx.x + blockDim.x, ...
// kItems > 0: at most kItems of them, kept in registers.  kItems == 0: any number, read again from
// `row` (mostly from L2) each time; the same thread has read or written them before.
template <class T, int kVec, int kItems>
class RowTile {
  public:
    using Item = Vec<T, kVec>;

    // `vectors` is 0 for the threads of a row past the end.
    __device__ RowTile(T const* row, int vectors) : row_(row), vectors_(vectors) {}

    // `make(v)` gives vector v of the row; it may store it to `row` on the way.
    template <class Make>
    __device__ void fill(Make make) {
        if constexpr (kItems > 0) {
#pragma unroll
            for (int i = 0; i < kItems; ++i)
                if (index(i) < vectors_) kept_[i] = make(index(i));
        } else {
            for (int v = threadIdx.x; v < vectors_; v += blockDim.x) make(v);
        }
    }

    // `use(v, item)` for each vector.
    template <class Use>
    __device__ void for_each(Use use) const {
        if constexpr (kItems > 0) {
#pragma unroll
            for (int i = 0; i < kItems; ++i)
                if (index(i) < vectors_) use(index(i), kept_[i]);
        } else {
            for (int v = threadIdx.x; v < vectors_; v += blockDim.x) use(v, load<kVec>(row_, v));
        }
    }

    // This thread's sum of `term(element)`.
    template <class Term>
    __device__ float sum(Term term) const {
        float total = 0.f;
        for_each([&](int, Item const& item) {
#pragma unroll
            for (int i = 0; i < kVec; ++i) total += term(to_float(item.at[i]));
        });
        return total;
    }

  private:
    __device__ static int index(int i) { return threadIdx.x + i * blockDim.x; }

    T const* row_;
    int vectors_;
    Item kept_[kItems > 0 ? kItems : 1];
};

// `body(row, vectors)` for each row of this thread; the loop is uniform within a block, so that
// `body` may synchronise, and `vectors` is 0 where the row is past the end.
template <class Body>
__device__ void for_each_row(int64_t rows, int vectors, Body body) {
    int64_t const stride = static_cast<int64_t>(gridDim.x) * blockDim.y;
    for (int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.y; first < rows;
         first += stride) {
        int64_t const row = first + threadIdx.y;
        body(row, row < rows ? vectors : 0);
    }
}

template <int kVecSize, int kItemCount>
struct RowShape {
    static constexpr int kVec = kVecSize;
    static constexpr int kItems = kItemCount;
};

inline constexpr int kMaxLanes = 512;       // threads on one row: 128 registers each
inline constexpr int kThreadsOfRows = 128;  // threads of a block that holds several rows

// Grid and block for rows of `vectors` vectors, with about `items` vectors a thread.
inline cudaLaunchConfig_t plan_rows(int64_t rows, int vectors, int items, cudaStream_t stream) {
    int const wanted = (vectors + items - 1) / items;
    int lanes = 1;
    while (lanes < wanted && lanes < 32) lanes *= 2;
    if (wanted > 32) lanes = std::min((wanted + 31) / 32 * 32, kMaxLanes);
    int const rows_per_block = std::max(1, lanes <= 32 ? kThreadsOfRows / lanes : 1);
    int64_t const blocks = (rows + rows_per_block - 1) / rows_per_block;
    cudaLaunchConfig_t config{};
    config.gridDim =
        dim3(static_cast<unsigned>(std::min<int64_t>(blocks, std::numeric_limits<int32_t>::max())));
    config.blockDim = dim3(lanes, rows_per_block);
    config.stream = stream;
    return config;
}

// Calls `launch(RowShape, config)` with the vector width and the register tile that suit the row.
// `vectors_allowed`: all pointers are 16-byte aligned.
template <class T, class Launch>
cudaError_t with_row_shape(int64_t rows, int64_t cols, bool vectors_allowed, cudaStream_t stream,
                           Launch launch) {
    constexpr int kVec = kVecBytes / sizeof(T);
    constexpr int kItems = 4;      // 16 registers with vectors, whatever T is
    constexpr int kLongItems = 8;  // 32 registers, 32768 columns of fp16; 16 items spill
    constexpr int kScalarItems = 8;
    if (rows < 0 || cols < 0 || cols > std::numeric_limits<int32_t>::max())
        return cudaErrorInvalidValue;
    if (rows == 0 || cols == 0) return cudaSuccess;
    auto const run = [&]<int kSize, int kCount>(RowShape<kSize, kCount> shape) {
        int const vectors = static_cast<int>(cols / kSize);
        // Rows too long for the registers fill the largest block anyway.
        return launch(shape, plan_rows(rows, vectors, kCount > 0 ? kCount : kLongItems, stream));
    };
    if (vectors_allowed && cols % kVec == 0) {
        int64_t const vectors = cols / kVec;
        if (vectors <= kItems * kMaxLanes) return run(RowShape<kVec, kItems>{});
        if (vectors <= kLongItems * kMaxLanes) return run(RowShape<kVec, kLongItems>{});
        return run(RowShape<kVec, 0>{});
    }
    return cols <= kScalarItems * kMaxLanes ? run(RowShape<1, kScalarItems>{})
                                            : run(RowShape<1, 0>{});
}

}  // namespace opfuse::device
