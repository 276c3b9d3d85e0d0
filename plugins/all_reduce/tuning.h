// Which way a sum goes, by its size, and how its rows are spread.
#pragma once
#include <cstdint>

namespace opfuse::tuning {

// Threads of a block on one row at most.  With those of seven others to wait for, 64 registers do
// not hold what a thread has in flight.
constexpr int most_lanes(int ranks) { return ranks <= 2 ? 1024 : 512; }
// So few rows are split over clusters, where a row has more parts of 16 bytes than this.
inline constexpr int kRowsToSplit = 8, kPartsToSplit = 128, kBlocksOfSplit = 4;

// Of a block where there are no rows: AllReduce, AllGather.
inline constexpr int kSumLanes = 256, kGatherLanes = 256;

// Bytes of x up to which each rank sends all of it to all others.  Two ranks always do: then both
// ways move the same bytes, and one shot waits once.
constexpr int64_t one_shot_bytes(int ranks) {
    if (ranks == 2) return INT64_MAX;
    return ranks <= 4 ? 512 << 10 : 256 << 10;
}

}  // namespace opfuse::tuning
