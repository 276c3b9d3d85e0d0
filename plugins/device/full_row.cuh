// Many rows, each of which fills a block with two vectors a thread: nothing is checked, and 32
// registers a thread let as many threads in as a multiprocessor has room for.
#pragma once
#include <cstdint>
#include <cstring>
#include <optional>
#include <type_traits>

#include "elements.cuh"
#include "launch.cuh"
#include "reduce.cuh"
#include "vec.cuh"

namespace opfuse::device {

// Figures are microseconds on an H100, fp16, of rows of 4096 where nothing else is said, in this
// order: behind a kernel that has just written x, and alone, from memory; before is by row.cuh.

// Threads of a block at least and at most, and such blocks of a multiprocessor at least: 2048 rows
// of AddRmsNorm take 19.3 and 23.6, before 22.9 and 23.5; with half the threads 20.2 and 24.2
// (AddLayerNorm), with a vector a thread 20.2 and 24.1, with four 21.0 and 25.3.
inline constexpr int kLeastLanesOfFull = 64, kLanesOfFull = tuning::kMaxLanes;
// Fewer rows, to so many threads a multiprocessor, take row.cuh, which fetches all of them ahead:
// 512 rows of RmsNorm take 3.9 and 4.4, before 4.0 and 3.6; 896 take 4.9 and 6.3, 5.7 and 6.3.
inline constexpr int kFewThreadsOfFull = 1536;
// So many blocks, the first, fetch their row ahead of the wait: 2048 rows of RmsNorm take 9.6 and
// 12.1, without 9.5 and 12.7; with 1056 blocks 9.2 and 12.8, without 9.1 and 12.6.
inline constexpr unsigned kBlocksFetched = 264;
#if defined(__CUDA_ARCH__) && \
    ((__CUDA_ARCH__ > 800 && __CUDA_ARCH__ < 900) || __CUDA_ARCH__ >= 1200)
inline constexpr int kBlocksOfFull = 1;  // of 1536 threads
#else
inline constexpr int kBlocksOfFull = 2;
#endif

// Over a block, as BlockSums (block_sums.cuh), by shuffles: it reads less.
class LaneSums {
  public:
    __device__ float add(float value, int turn) const {
        float values[1] = {warp_sum(value)};
        exchange(values, turn);
        return values[0];
    }
    template <class Meanwhile>
    __device__ void add(float (&values)[2], int turn, Meanwhile meanwhile) const {
        for (float& value : values) value = warp_sum(value);
        meanwhile();
        exchange(values, turn);
    }

  private:
    template <int kCount>
    __device__ void exchange(float (&values)[kCount], int turn) const {
        __shared__ float parts[2][kCount][32];
        int const lane = threadIdx.x % 32;
        if (lane == 0)
#pragma unroll
            for (int i = 0; i < kCount; ++i) parts[turn][i][threadIdx.x / 32] = values[i];
        __syncthreads();
#pragma unroll
        for (int i = 0; i < kCount; ++i)
            values[i] = warp_sum(32 * lane < blockDim.x ? parts[turn][i][lane] : 0.f);
    }
};

struct MeanAndVariance {
    float mean, variance;
};

// A block's row as one thread sees it.  kStreams: L2 gives up first what is loaded.
template <class T, bool kStreams>
class FullRow {
  public:
    static constexpr int kVec = kVecBytes / sizeof(T), kItems = 2;
    using Items = uint4[kItems];  // whole registers: nvcc would move halves of 32 bits one by one

    // Ahead of the wait, by the first blocks, which may start while the kernel ahead ends.
    __device__ void fetch(T const* tensor) const {
        constexpr int kThreadsOfSector = 32 / kVecBytes;
        if (blockIdx.x >= kBlocksFetched || threadIdx.x % kThreadsOfSector != 0) return;
#pragma unroll
        for (int i = 0; i < kItems; ++i) prefetch(place(tensor, i));
    }
    // Of a [rows, cols] tensor, which is read this once.
    __device__ void load(Items& items, T const* tensor) const {
#pragma unroll
        for (int i = 0; i < kItems; ++i)
            items[i] = kStreams ? __ldcs(place(tensor, i)) : *place(tensor, i);
    }
    // x + residual, rounded, behind the kernel ahead; and stores it where it is read.
    __device__ void begin_with_sums(Items& items, T* sum, T const* x, T const* residual,
                                    bool sum_is_read) const {
        fetch(x);
        fetch(residual);
        wait_in_turn();
        Items others;
        load(items, x);
        load(others, residual);
#pragma unroll
        for (int i = 0; i < kItems; ++i)
            items[i] = words(device::add<T>(elements(items[i]), elements(others[i])));
        if (!sum_is_read) return;
#pragma unroll
        for (int i = 0; i < kItems; ++i) store(sum, i, items[i]);
    }

    // The sum of x^2 over the row.
    __device__ float squares(Items const& x) const {
        float own = 0.f;
#pragma unroll
        for (uint4 const& item : x) own += sum_of_squares(wide(item));
        return sums_.add(own, 0);
    }
    // Of the row; `share`: 1 / its elements.
    __device__ MeanAndVariance moments(Items const& x, float share) const {
        float pivot = 0.f;
#pragma unroll 1
        for (int turn = 0;; ++turn) {
            auto const [shift, variance] = moments_around(pivot, x, share, turn);
            // Else too little is left of the squares, or they are too large for fp32.
            bool const is_near = tuning::kMostOfMean * variance >= shift * shift;
            if (turn == 1 || (is_near && !isinf(variance)))
                return {pivot + shift, variance < 0.f ? 0.f : variance};  // NaN stays
            pivot = shift;
        }
    }

    // Stores x * scale * gamma.
    __device__ void store_rms(T* y, Items const& x, float scale, void const* gamma) const {
#pragma unroll
        for (int i = 0; i < kItems; ++i) {
            auto values = wide(x[i]);
            auto const g = parameter(gamma, i);
#pragma unroll
            for (int k = 0; k < kVec; ++k) values.at[k] = values.at[k] * scale * g.at[k];
            store(y, i, words(narrow<T>(values)));
        }
    }
    // Stores (x - mean) * scale * gamma + beta.
    __device__ void store_layer(T* y, Items const& x, float mean, float scale, void const* gamma,
                                void const* beta) const {
#pragma unroll
        for (int i = 0; i < kItems; ++i) {
            auto values = wide(x[i]);
#pragma unroll
            for (float& value : values.at) value = (value - mean) * scale;
            auto const g = parameter(gamma, i);
#pragma unroll
            for (int k = 0; k < kVec; ++k) values.at[k] *= g.at[k];
            auto const b = parameter(beta, i);
#pragma unroll
            for (int k = 0; k < kVec; ++k) values.at[k] += b.at[k];
            store(y, i, words(narrow<T>(values)));
        }
    }

  private:
    // The same: elements are widened anew in each pass, not kept so, and words are whole.
    __device__ static uint4 opaque(uint4 words) {
        asm volatile("" : "+r"(words.x), "+r"(words.y), "+r"(words.z), "+r"(words.w));
        return words;
    }
    __device__ static Vec<T, kVec> elements(uint4 words) {
        Vec<T, kVec> item;
        memcpy(&item, &words, sizeof(item));
        return item;
    }
    __device__ static Vec<float, kVec> wide(uint4 words) {
        words = opaque(words);
        if constexpr (std::is_same_v<T, __nv_bfloat16>) {
            // Without halves of registers, which nvcc would spill.
            unsigned const word[4] = {words.x, words.y, words.z, words.w};
            Vec<float, kVec> values;
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                values.at[2 * i] = __uint_as_float(word[i] << 16);
                values.at[2 * i + 1] = __uint_as_float(word[i] & 0xffff0000u);
            }
            return values;
        } else {
            return widen(elements(words));
        }
    }
    __device__ static uint4 words(Vec<T, kVec> const& item) {
        uint4 words;
        memcpy(&words, &item, sizeof(item));
        return opaque(words);
    }
    __device__ uint4 const* place(T const* tensor, int i) const {
        return reinterpret_cast<uint4 const*>(tensor) + first_ + i * blockDim.x;
    }
    __device__ void store(T* tensor, int i, uint4 const& item) const {
        reinterpret_cast<uint4*>(tensor)[first_ + i * blockDim.x] = item;
    }
    // Of a [cols] parameter of T.
    __device__ Vec<float, kVec> parameter(void const* data, int i) const {
        return wide(static_cast<uint4 const*>(data)[threadIdx.x + i * blockDim.x]);
    }
    // The mean's distance from `pivot`.
    __device__ MeanAndVariance moments_around(float pivot, Items const& x, float share,
                                              int turn) const {
        float sums[2]{};
#pragma unroll
        for (uint4 const& item : x) {
            auto values = wide(item);
#pragma unroll
            for (float& value : values.at) value -= pivot;
            sums[0] += sum_of(values);
            sums[1] += sum_of_squares(values);
        }
        sums_.add(sums, turn, [] {});
        float const mean = sums[0] * share;
        return {mean, sums[1] * share - mean * mean};
    }

    LaneSums sums_;
    unsigned first_ = blockIdx.x * kItems * blockDim.x + threadIdx.x;  // of its vectors
};

// ---- on the host

// What the op reads and writes in all, in bytes, from which on L2 (50 MB) gives up first what is
// read: more of what the kernel ahead has written is there then.  AddRmsNorm of 2048 rows (67 MB)
// takes 19.2 and 23.6, not 21.4 and 23.4, RmsNorm of 4096 rows 21.2 and 24.1, not 23.4 and 23.6,
// but RmsNorm of 2048 rows 9.0 and 12.9, not 9.1 and 12.6.
inline constexpr int64_t kStreamedFrom = 40 << 20;
// And up to which rows are taken so: beyond, L2 has nothing of x by then, and AddRmsNorm of 16384
// rows takes 179, not 177.
inline constexpr int64_t kMostBytesOfFull = 100 << 20;

// Calls `run(Machine, Grid, streams)`, unless rows do not fill their blocks, are few, or are more
// than L2 holds.  `tensors`: how many of [rows, cols] are read or written.
template <class T, class Run>
std::optional<cudaError_t> with_full_rows(int64_t rows, int64_t cols, int tensors, Run run) {
    constexpr int kOfWarp = 64 * (kVecBytes / sizeof(T));
    int64_t const threads = cols / kOfWarp * 32;
    if (rows <= 0 || cols % kOfWarp != 0 || threads < kLeastLanesOfFull || threads > kLanesOfFull)
        return std::nullopt;
    if (rows > kMostBytesOfFull / (cols * int64_t{sizeof(T)} * tensors)) return std::nullopt;
    Machine machine;
    if (cudaError_t const status = current_machine(machine); status != cudaSuccess) return status;
    if (rows * threads <= int64_t{kFewThreadsOfFull} * machine.multiprocessors) return std::nullopt;
    bool const streams = rows * cols * int64_t{sizeof(T)} * tensors > kStreamedFrom;
    Grid grid;
    grid.blocks = rows;
    grid.threads = dim3(static_cast<unsigned>(threads));
    return run(machine, grid, streams);
}

}  // namespace opfuse::device
