// How rows are spread over threads, blocks, and clusters: every such choice, with its measurement.
//
// One set of numbers serves all architectures.  What an architecture lacks is asked for at run time
// (launch.cuh): clusters and early launches need sm_90, and how much shared memory a block may have
// differs.  Figures are microseconds on an H100, fp16, columns in parentheses, from
// `python -m benchmarks.kernels`; no other architecture was measured.
#pragma once
#include <cstdint>

namespace opfuse::device::tuning {

// 16-byte vectors that a thread keeps in registers at most, by what it keeps beside them.
// One tensor (RmsNorm, GroupNormSilu): 4; with 2, RmsNorm of 16384 rows (4096) takes 96, not 90.
inline constexpr int kItemsOfOne = 4;
// Two tensors (AddRmsNorm, AddLayerNorm): 2; with 4, 16384 rows (4096) take 309 and 662, not 177
// and 178: 64 registers a thread do not hold the loads of both.
inline constexpr int kItemsOfTwo = 2;
// Softmax keeps fp32, twice the registers: 2; with 4, 8x12x384 rows (384) take 35, not 33, and
// 2x32x2048 rows (2048) 686, not 454; with 8, 51 and 814.
inline constexpr int kItemsOfSoftmax = 2;
// Elements, where nothing is aligned.
inline constexpr int kScalarItems = 8;

// Threads of a block on one row at most, for each number of items: 64 registers a thread, and a row
// of 14336 stays in one block.  With 512 instead of 1024 for two items it is a cluster of two, and
// AddRmsNorm of 8192 rows takes 327, not 310.
inline constexpr int kMaxLanes = 1024;
constexpr int most_lanes(int items) { return items == 1 || items == 2 ? kMaxLanes : 512; }
// Such blocks of a multiprocessor at least: with one, RmsNorm of 8192 rows (14336) has 84 registers
// a thread and takes 208, not 156.
constexpr int least_blocks(int items) { return kMaxLanes / most_lanes(items); }

// Threads of a block that holds several rows, and such blocks of a multiprocessor at least: 72
// registers a thread, the fewest without spills.
inline constexpr int kThreadsOfRows = 128, kBlocksOfRows = 7;

// Blocks of a cluster on one row, at most and wherever one block is too small; more are not
// portable.  1024 rows (65536) read once by clusters take 97 (RmsNorm), read twice 140; clusters of
// 4 instead of 8 take 212, not 203 (AddLayerNorm).
inline constexpr int kMaxCluster = 8;
// So few rows are split over clusters too: 1 row (4096) takes 1.37, 1.43, and 2.05 (RmsNorm,
// AddRmsNorm, AddLayerNorm) on four blocks of 128 threads, 1.42, 1.53, and 2.11 on one of 512;
// 64 rows take 1.90, 2.18, and 3.09 on clusters, 1.81, 2.04, and 2.76 without.
inline constexpr int kRowsToSplit = 8, kSlotsToSplit = 128, kBlocksOfSplit = 4;

// Rows are few where each thread of this many a multiprocessor can have one vector: all loads are
// in flight at once, and 64 rows (4096) take 1.8 (RmsNorm), with four vectors a thread 2.5.  A
// thread keeps four where it would have eight: 2048 rows take 13.0 with two, 13.4 with four.
inline constexpr int kFewThreads = 1024;

// Such rows that fill their threads (short_row.cuh): above this number of vectors a thread has two,
// for eight warps add up faster than sixteen: 64 rows (4096) take 1.50 and 1.79 (RmsNorm,
// AddLayerNorm), not 1.58 and 1.82.  Clusters of two for 9 to 64 rows: 64 take 1.60, 1.82, and
// 1.85.
inline constexpr int kSlotsOfOne = 256;
// They let the next launch in ahead of their wait up to so many rows, where there is more than one
// a multiprocessor, and where there is room for two launches (below) unless they have more than the
// first and less than the second number of vectors: in layers like a Llama's, AddRmsNorm of 64 rows
// (2048) and the products around it take 362 so, not 354, of 32 rows 415 and 400; of 64 rows (768)
// 276, not 289, of 32 304 and 316; of 64 and 32 rows (4096) as long as in order.
inline constexpr int kShortRowsEarly = 16, kSlotsEarly = 128, kSlotsEarlyFrom = 512;
// With the second number of vectors or more, from so many rows on a hundred multiprocessors on, and
// with room for one launch: 144 rows take 2.19, 2.43, and 2.89 early, 1.87, 2.34, and 2.40 in
// order, 256 2.29, 3.49, and 3.51 early, 2.34, 3.67, and 3.67 in order; early and without a limit
// AddLayerNorm of 256 takes 3.99.
inline constexpr int kLongRowsEarly = 190, kMostShareOfMany = 8;

// Their mean and variance come of plain sums, in one exchange, where the mean squared is at most so
// many variances, which costs the variance four of fp32's 24 bits; other rows are summed once more,
// around their mean.  AddLayerNorm of 64 rows (4096) took 1.68 with means merged, warp by warp.
inline constexpr float kMostOfMean = 16.f;

// Of a group that no cluster holds (GroupNormSilu): 1x128x512x512 takes 76 with four vectors a
// thread in flight, 86 with two, 79 with eight.
inline constexpr int kLanesOfPart = 256, kItemsOfPart = 4, kBlocksOfPart = 4;

// Of two launches, the most blocks on a multiprocessor up to which it has room for no more
// (launch.cuh): with a block a row, and of kernels that take vector by vector.  64 rows (4096) take
// 1.30, 1.53, 1.69, and 1.36 (RmsNorm, AddRmsNorm, AddLayerNorm, GatedAct), not 1.50, 1.80, 1.79,
// and 1.44.  With two blocks 96 rows of RmsNorm take 1.78, not 1.67; with eight, 128 of GatedAct
// 1.95, not 1.90.
inline constexpr int kMostShareOfRows = 1, kMostShareOfVectors = 6;
// And the most of a hundred multiprocessors that such launches of rows may leave over: AddLayerNorm
// of 48 rows, which leave 36 of 132, takes 1.78 so, not 1.68; 40, which leave 12, 1.50, not 1.64.
inline constexpr int kMostLeftOver = 10;

// A launch that may start early fetches its first row into L2 while the kernel ahead ends: a kernel
// that does nothing but read and write two tensors of 64 rows (4096) takes 1.34 with both, 1.95
// without the fetch, 2.39 without either; of 1 row 0.93, 1.22, and 1.81.
inline constexpr bool kPrefetch = true;

// Up to so many blocks let the next launch in at once, more of them when their own wait is over:
// else several launches are there together, and 64 rows (4096) take 1.72, 2.00, 2.24, and 1.69
// (RmsNorm, AddRmsNorm, AddLayerNorm, GatedAct), not 1.35, 1.51, 1.68, and 1.34; 1 row on 4 blocks
// takes 1.09, 1.11, 1.22, and 0.87, not 1.25, 1.25, 1.26, and 0.97.
inline constexpr unsigned kBlocksToLetIn = 16;

// Rows in a warp do not start early where a tensor has more than the first and less than the second
// number of bytes: it comes from L2 and a product is behind it, whose blocks wait for whole
// multiprocessors.  BERT's products and norms (3072 rows of 768, 12 layers) take 1056 in all with
// early norms, 1026 without, ViT's (6304 rows) 2017 and 1987; 128 rows (2048) in Llama's 271 and
// 289, and alone, from memory, 32768 rows (768) of RmsNorm take 34.4, not 35.2.
__host__ __device__ constexpr bool overlaps_in_warps(int64_t bytes) {
    return bytes <= 2 << 20 || bytes >= 16 << 20;
}

// Clusters also fetch the row that is so many bytes of inputs ahead, half of what is in flight:
// 1024 rows (65536) take 89 and 177 (RmsNorm, AddRmsNorm), not 94 and 185; four times as far ahead
// AddRmsNorm takes 222.  Blocks do not: AddLayerNorm of 16384 rows (4096) takes 205 with it, not
// 178.
inline constexpr int kBytesAhead = 4 << 20;

}  // namespace opfuse::device::tuning
