// Picks the row shape and the grid for [rows, cols]: the host's side of row.cuh.
#pragma once
#include <algorithm>
#include <cstdint>
#include <limits>

#include "row.cuh"

namespace opfuse::device {

enum class Access {
    kAligned,  // every row of every tensor starts at a multiple of 16 bytes
    kShifted,  // the tensors are congruent: what is aligned in one is aligned in all
    kScalar,
};

// Of tensors of [rows, cols]; `parameters_aligned`: those of [cols] are.
template <class T, class... Tensors>
Access access_of(int64_t cols, bool parameters_aligned, T const* first, Tensors const*... rest) {
    if (aligned(first, rest...) && parameters_aligned && cols * sizeof(T) % kVecBytes == 0)
        return Access::kAligned;
    return congruent(first, rest...) ? Access::kShifted : Access::kScalar;
}

// Whether all parameters that there are have the type T.
template <class T, class... Parameters>
bool plain_of(Parameters const&... parameters) {
    return std::is_same_v<T, float> || !(parameters.is_float || ...);
}

// A thread looks for its next slot as many elements on as a cluster has threads, in 32 bits.
inline constexpr int64_t kMostColumns =
    std::numeric_limits<int32_t>::max() - tuning::kMaxLanes * tuning::kMaxCluster;

inline constexpr int kReservedShared = 8192;  // bytes: what kernels declare, and the system's

struct RowPlan {
    int items = 0;  // 0: in shared memory
    Grid grid;
};

// How a row is cut: `blocks` of a cluster, and what a thread of them keeps; `items` is 0 where that
// is not enough.
struct RowCut {
    int items, blocks;

    int64_t reach() const { return int64_t{items} * tuning::most_lanes(items) * blocks; }
};

// Few rows spread over as many threads as can be resident; many rows keep more slots a thread.
inline RowCut cut_row(Machine const& machine, int64_t rows, int slots, int least_items,
                      int most_items) {
    using namespace tuning;
    int const most_blocks = machine.has_clusters() ? kMaxCluster : 1;
    int64_t const resident = int64_t{kFewThreads} * machine.multiprocessors;
    RowCut cut{least_items, 1};
    if (rows <= kRowsToSplit && slots > kSlotsToSplit)
        for (cut.blocks = std::min(kBlocksOfSplit, most_blocks);
             cut.blocks < most_blocks && cut.reach() < slots;)
            cut.blocks *= 2;
    auto const many = [&](int64_t items) {
        return rows * slots > items * items * items * resident;
    };
    while (cut.items < most_items && (many(cut.items) || cut.reach() < slots)) cut.items *= 2;
    if (cut.reach() < slots) cut.blocks = most_blocks;
    if (cut.reach() < slots) cut.items = 0;
    return cut;
}

// Lanes of a warp that hold so many slots, `items` each; more than 32 where a warp is too small.
inline int lanes_of_warp(int slots, int items) {
    int lanes = 1;
    while (lanes <= 32 && lanes * items < slots) lanes *= 2;
    return lanes;
}

// `slots` is the most that a row may have, `least_lanes` what its edges need.  `in_thirds`: there
// is a shape of three items for rows that just fill some lanes of a warp.
inline RowPlan plan_rows(Machine const& machine, int64_t rows, int slots, int least_items,
                         int most_items, int least_lanes, size_t item_bytes,
                         bool in_thirds = false) {
    using namespace tuning;
    auto [items, blocks] = cut_row(machine, rows, slots, least_items, most_items);
    int const kept = (items > 0 ? items : most_items) * blocks;
    int const wanted = std::max((slots + kept - 1) / kept, least_lanes);
    int lanes = lanes_of_warp(wanted, 1);
    if (wanted > 32 || blocks > 1) lanes = std::min((wanted + 31) / 32 * 32, most_lanes(items));
    while (items > least_items && items / 2 * lanes * blocks >= slots) items /= 2;
    if (in_thirds && items >= 2 && blocks == 1)
        if (int const thirds = lanes_of_warp(slots, 3); thirds <= 32 && 3 * thirds == slots) {
            items = 3;
            lanes = thirds;
        }
    int const height = lanes <= 32 && blocks == 1 ? kThreadsOfRows / lanes : 1;
    RowPlan plan{items, {}};
    plan.grid.blocks = (rows + height - 1) / height * blocks;
    plan.grid.threads = dim3(lanes, height);
    plan.grid.cluster = blocks;
    if (items == 0) {
        size_t const bytes = (slots / blocks / lanes + 1) * item_bytes * lanes;
        plan.grid.shared_bytes = std::min<size_t>(bytes, machine.shared_bytes - kReservedShared);
    }
    return plan;
}

// Calls `run(RowShape)` with the shape of a plan for aligned rows and plain parameters.
template <int kVec, int kMostItems, class Run>
cudaError_t with_plain_shape(RowPlan const& plan, Run run) {
    auto const with_reach = [&]<int kItems>(RowShape<kVec, false, kItems>) {
        if (plan.grid.cluster > 1) return run(RowShape<kVec, false, kItems, Reach::kCluster>{});
        if (plan.grid.threads.x > 32) return run(RowShape<kVec, false, kItems, Reach::kBlock>{});
        // One item is two of which the second is past the end: a kernel less.
        return run(RowShape<kVec, false, std::max(kItems, 2), Reach::kWarp>{});
    };
    if (plan.items == 1) return with_reach(RowShape<kVec, false, 1>{});
    if (plan.items == 2) return with_reach(RowShape<kVec, false, 2>{});
    if (plan.items == 3) return run(RowShape<kVec, false, 3, Reach::kWarp>{});
    if constexpr (kMostItems >= 4)
        if (plan.items == 4) return with_reach(RowShape<kVec, false, 4>{});
    return run(RowShape<kVec, false, 0>{});
}

// Calls `run(RowShape, Machine, Grid)`.  `Element` is what a tile keeps of a T; kMostItems is one
// of tuning::kItemsOf....  `plain`: the parameters have the type T.
template <class Element, class T, int kMostItems, class Run>
cudaError_t with_row_shape(int64_t rows, int64_t cols, Access access, bool plain, Run run) {
    constexpr int kVec = kVecBytes / sizeof(T);
    if (rows < 0 || cols < 0 || cols > kMostColumns) return cudaErrorInvalidValue;
    if (rows == 0 || cols == 0) return cudaSuccess;
    Machine machine;
    if (cudaError_t const status = current_machine(machine); status != cudaSuccess) return status;
    auto const plan_with = [&](int size, int least_items, int most_items, int least_lanes,
                               bool in_thirds, size_t bytes) {
        return plan_rows(machine, rows, static_cast<int>(cols / size), least_items, most_items,
                         least_lanes, bytes, in_thirds);
    };
    constexpr size_t kItemBytes = sizeof(Vec<Element, kVec>);
    if (access == Access::kAligned && plain) {
        RowPlan const plan = plan_with(kVec, 1, kMostItems, 1, true, kItemBytes);
        return with_plain_shape<kVec, kMostItems>(plan, [&]<class Shape>(Shape shape) {
            Grid grid = plan.grid;
            grid.overlaps = Shape::overlaps(rows * cols * int64_t{sizeof(T)});
            return run(shape, machine, grid);
        });
    }
    // Few are called for: one shape for all that registers hold, one for shared memory.
    auto const with_most =
        [&]<int kSize, bool kShifted, int kItems>(RowShape<kSize, kShifted, kItems> shape) {
            int const least_lanes = kShifted ? 2 * kSize - 2 : 1;
            constexpr size_t kBytes = sizeof(Vec<Element, kSize>);
            if constexpr (kShifted) {  // 2x16x1024 rows (77) of softmax take 11.3, not 12.6
                RowPlan const plan = plan_with(kSize, 1, kItems, least_lanes, false, kBytes);
                if (plan.items == 1) return run(RowShape<kSize, kShifted, 1>{}, machine, plan.grid);
            }
            RowPlan const plan = plan_with(kSize, kItems, kItems, least_lanes, false, kBytes);
            if (plan.items > 0) return run(shape, machine, plan.grid);
            return run(RowShape<kSize, kShifted, 0>{}, machine, plan.grid);
        };
    switch (access) {
    case Access::kAligned: return with_most(RowShape<kVec, false, kMostItems>{});
    case Access::kShifted: return with_most(RowShape<kVec, true, kMostItems>{});
    case Access::kScalar: return with_most(RowShape<1, false, tuning::kScalarItems>{});
    }
    return cudaErrorInvalidValue;
}

}  // namespace opfuse::device
