// Which way a sum goes, by its size, and how its rows are spread.  Figures are microseconds of
// AllReduceAddNorm on two H100, or as many as stand there, fp16, columns in parentheses, from
// `benchmarks.allreduce`; more than four ranks were not measured.
#pragma once
#include <cstdint>

namespace opfuse::tuning {

// Threads of a block on one row at most, and where those of seven others are waited for, which 64
// registers do not hold.  4 ranks, by two shots: 2048 rows (4096) take 90 on blocks of 512 in 126
// registers, and 101 and 115 two a multiprocessor in 64, which took the sums of a group one group
// later; 2048 rows (8192) take 204 on 512 threads with two parts each, 196 on 1024 with one.
inline constexpr int kMostLanes = 1024, kLanesForMany = 512;

// So few rows are split over clusters, where a row has more parts of 16 bytes than this: 1, 2, and
// 4 rows (8192) take 4.0, 4.3, and 5.0 on four blocks each, 5.4, 5.5, and 5.5 on one.
inline constexpr int kRowsToSplit = 8, kPartsToSplit = 128, kBlocksOfSplit = 4;

// Of a block where there are no rows: AllReduce, AllGather.
inline constexpr int kSumLanes = 256, kGatherLanes = 256;

// Bytes of x up to which each rank sends all of it to all others, n - 1 times x.  By two shots it
// sends 2 (n - 1) / n times x, and waits twice: about 8 us more for 3 and 4 ranks.  The bytes that
// take as long are 1.5 MiB * n / ((n - 1) (n - 2)), where that is measured: 3 ranks, 2 MiB, 18.8
// and 17.8; 4 ranks, 1 MiB, 14.7 and 14.6.  Two ranks send the same bytes either way.
constexpr int64_t one_shot_bytes(int64_t ranks) {
    if (ranks <= 2) return INT64_MAX;
    return (int64_t{3} << 19) * ranks / ((ranks - 1) * (ranks - 2));
}

// Bytes from which NCCL makes a sum without a norm faster, up to 128 MiB never on two ranks.  bf16,
// ours and NCCL's: 3 ranks, 24 MiB, 133.5 and 129.5, but fp32 127.0 and 130.3; 32 MiB, 181.7 and
// 162.9; 4 ranks, 16 MiB, 96.0 and 103.1; 24 MiB, 144.6 and 137.5; 128 MiB, 767 and 619.
constexpr int64_t nccl_bytes(int64_t ranks) {
    if (ranks < 3 || ranks > 4) return INT64_MAX;
    return int64_t{ranks == 3 ? 32 : 24} << 20;
}

}  // namespace opfuse::tuning
