// How rows are spread over threads, blocks, and clusters: every such choice, with its reason.
#pragma once

namespace opfuse::device::tuning {

#ifndef OPFUSE_PREFETCH
#define OPFUSE_PREFETCH 1
#endif
#ifndef OPFUSE_ONE_ITEMS
#define OPFUSE_ONE_ITEMS 4
#endif
#ifndef OPFUSE_TWO_ITEMS
#define OPFUSE_TWO_ITEMS 2
#endif
#ifndef OPFUSE_SOFT_ITEMS
#define OPFUSE_SOFT_ITEMS 2
#endif
#ifndef OPFUSE_LANES4
#define OPFUSE_LANES4 512
#endif
#ifndef OPFUSE_BLOCKS4
#define OPFUSE_BLOCKS4 2
#endif
#ifndef OPFUSE_LANES2
#define OPFUSE_LANES2 1024
#endif
inline constexpr int kItemsOfOne = OPFUSE_ONE_ITEMS;
inline constexpr int kItemsOfTwo = OPFUSE_TWO_ITEMS;
inline constexpr int kItemsOfSoftmax = OPFUSE_SOFT_ITEMS;
inline constexpr int kScalarItems = 8;
inline constexpr int kMaxLanes = 1024;
inline constexpr int kThreadsOfRows = 128;          // of a block that holds several rows
inline constexpr int kLanesOfPart = 256;            // of a block on a part of a group
inline constexpr int kItemsOfPart = 2, kBlocksOfPart = 4;
inline constexpr int kMaxCluster = 8;               // blocks on one row; more are not portable
inline constexpr int kFewThreads = 1024;
inline constexpr bool kPrefetch = OPFUSE_PREFETCH;

constexpr int most_lanes(int items) {
    return items == 1 ? kMaxLanes : items == 2 ? OPFUSE_LANES2 : OPFUSE_LANES4;
}
constexpr int least_blocks(int items) {
    return items == 1 ? 1 : items == 2 ? 1024 / OPFUSE_LANES2 : OPFUSE_BLOCKS4;
}

}  // namespace opfuse::device::tuning
