// Which way a sum goes, by its size, and how its rows are spread.  Figures are microseconds of
// AllReduceAddNorm on two H100, fp16, columns in parentheses, from `python -m
// benchmarks.allreduce`; more ranks were not measured.
#pragma once
#include <cstdint>

namespace opfuse::tuning {

// Threads of a block on one row at most.  With those of seven others to wait for, 64 registers do
// not hold what a thread has in flight.
constexpr int most_lanes(int ranks) { return ranks <= 2 ? 1024 : 512; }
// So few rows are split over clusters, where a row has more parts of 16 bytes than this: 1, 2, and
// 4 rows (8192) take 4.0, 4.3, and 5.0 on four blocks each, 5.4, 5.5, and 5.5 on one.
inline constexpr int kRowsToSplit = 8, kPartsToSplit = 128, kBlocksOfSplit = 4;

// Of a block where there are no rows: AllReduce, AllGather.
inline constexpr int kSumLanes = 256, kGatherLanes = 256;

// Bytes of x up to which each rank sends all of it to all others.  Two ranks always do, since both
// ways move the same bytes then, and one shot waits once: 1 row (4096) takes 3.9, by two shots 5.3,
// and 8192 rows 221, by two shots 281.
constexpr int64_t one_shot_bytes(int ranks) {
    if (ranks == 2) return INT64_MAX;
    return ranks <= 4 ? 512 << 10 : 256 << 10;
}

}  // namespace opfuse::tuning
