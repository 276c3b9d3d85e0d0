// Few rows, each of which just fills one block or cluster: every instruction behind the wait counts
// there.  All addresses are known ahead of it; behind it are the loads, one reduction, the stores.
#pragma once
#include <cstdint>
#include <cstring>
#include <optional>
#include <type_traits>

#include "block_sums.cuh"
#include "elements.cuh"
#include "launch.cuh"
#include "team.cuh"
#include "vec.cuh"

namespace opfuse::device {

// How the row is spread: kItems 16-byte vectors a thread; `kWidth` as in TeamOf.
template <class Type, int kItemCount, Reach kTeamReach, int kWidth>
struct ShortShape {
    using T = Type;
    static constexpr int kVec = kVecBytes / sizeof(T), kItems = kItemCount;
    static constexpr int kCount = kVec * kItems;  // elements of a thread
    static constexpr int kLanes = kWidth > 0 ? 32 * kWidth : tuning::kMaxLanes;
    using Team = TeamOf<kTeamReach, kWidth>;
    static constexpr bool kFewWarps = kTeamReach == Reach::kBlock && kWidth == 8;
    using Sums = std::conditional_t<kFewWarps, BlockSums<8>, TeamSums<Team>>;
    using Items = Vec<T, kCount>;
    using Wide = Vec<float, kCount>;
};

// This thread's vectors of a tensor.
template <class Element, int kItems>
struct Spots {
    Element* at[kItems];
};

template <class Shape>
class ShortRow {
  public:
    using T = typename Shape::T;
    using Items = typename Shape::Items;
    static constexpr int kVec = Shape::kVec, kItems = Shape::kItems;

    // The rows are the blocks' or clusters', one each.
    __device__ explicit ShortRow(typename Shape::Team& team)
        : sums_(make_sums(team)),
          column_(team.lane() * kVec),
          start_(static_cast<int>(blockIdx.x) / team.blocks() * team.lanes() * Shape::kCount),
          step_(team.lanes() * kVec) {}

    // Of a [rows, cols] tensor, and of a [cols] parameter.
    template <class Element>
    __device__ Spots<Element, kItems> spots(Element* tensor) const {
        return spots_from(tensor + start_);
    }
    __device__ Spots<T const, kItems> parameter(void const* data) const {
        return spots_from(static_cast<T const*>(data));
    }

    __device__ void prefetch(Spots<T const, kItems> const& spots) const {
        constexpr int kThreadsOfSector = 32 / kVecBytes;
        if (threadIdx.x % kThreadsOfSector != 0) return;
        for (T const* spot : spots.at) device::prefetch(spot);
    }
    // Of a tensor, read once.
    __device__ Items load(Spots<T const, kItems> const& spots) const {
        return load_by(spots, [](T const* spot) { return load_now<kVec, false>(spot); });
    }
    __device__ Items load_parameter(Spots<T const, kItems> const& spots) const {
        return load_by(spots, [](T const* spot) { return load_now<kVec>(spot); });
    }
    __device__ void store(Spots<T, kItems> const& spots, Items const& items) const {
#pragma unroll
        for (int i = 0; i < kItems; ++i) {
            Vec<T, kVec> part;
            memcpy(part.at, items.at + i * kVec, sizeof(part));
            device::store(spots.at[i], 0, part);
        }
    }

    __device__ typename Shape::Sums const& sums() const { return sums_; }

  private:
    __device__ static typename Shape::Sums make_sums(typename Shape::Team& team) {
        if constexpr (Shape::kFewWarps)
            return {};
        else
            return typename Shape::Sums(team);
    }
    template <class Load>
    __device__ static Items load_by(Spots<T const, kItems> const& spots, Load load) {
        Items items;
#pragma unroll
        for (int i = 0; i < kItems; ++i) {
            Vec<T, kVec> const part = load(spots.at[i]);
            memcpy(items.at + i * kVec, part.at, sizeof(part));
        }
        return items;
    }
    template <class Element>
    __device__ Spots<Element, kItems> spots_from(Element* row) const {
        Spots<Element, kItems> spots;
#pragma unroll
        for (int i = 0; i < kItems; ++i) spots.at[i] = settled(row + column_ + i * step_);
        return spots;
    }

    typename Shape::Sums sums_;
    int column_, start_, step_;
};

// Behind the addresses and ahead of the first load; fetches what `spots` are of.  A kernel may have
// let the next one in before.
template <class Shape, class... Fetched>
__device__ void start_short(typename Shape::Team& team, ShortRow<Shape> const& row,
                            bool lets_in_early, Fetched const&... spots) {
    (row.prefetch(spots), ...);
    team.meet();
    if (lets_in_early) let_next_start();
    wait_for_previous();
    if (!lets_in_early) let_next_start();
}

// a * b, computed here: while a sum of other threads is waited for, not behind it.
template <int kCount>
__device__ Vec<float, kCount> product(Vec<float, kCount> a, Vec<float, kCount> const& b) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) a.at[i] = settled(a.at[i] * b.at[i]);
    return a;
}

// Stores x * rsqrt(mean(x^2) + epsilon) * gamma of this thread's `x`; the last that a kernel does.
template <class Shape, class T = typename Shape::T>
__device__ void finish_rms(typename Shape::Team& team, ShortRow<Shape> const& row,
                           Spots<T, Shape::kItems> const& to, typename Shape::Wide const& x,
                           typename Shape::Items const& gammas, float share, float epsilon) {
    float const squares = sum_of_squares(x);
    auto y = product(x, widen(gammas));
    float const scale = rsqrtf(row.sums().add(squares, 0) * share + epsilon);
#pragma unroll
    for (float& value : y.at) value *= scale;
    row.store(to, narrow<T>(y));
    team.leave();
}

// Stores (x - mean(x)) * rsqrt(variance(x) + epsilon) * gamma + beta, as finish_rms.  `meanwhile`:
// what is stored besides.
template <class Shape, class Meanwhile, class T = typename Shape::T>
__device__ void finish_layer(typename Shape::Team& team, ShortRow<Shape> const& row,
                             Spots<T, Shape::kItems> const& to, typename Shape::Wide x,
                             typename Shape::Items const& gammas,
                             typename Shape::Items const& betas, float share, float epsilon,
                             Meanwhile meanwhile) {
    auto const g = widen(gammas), b = widen(betas);
    float sums[2] = {sum_of(x), sum_of_squares(x)};
    auto y = product(x, g);
    row.sums().add(sums, 0, meanwhile);
    float mean = sums[0] * share, variance = sums[1] * share - mean * mean;
    float scale = rsqrtf(variance + epsilon);
    // Too little is left of the squares, or they are too large for fp32.
    if (!(tuning::kMostOfMean * variance >= mean * mean) || isinf(variance)) {
#pragma unroll
        for (float& value : x.at) value -= mean;
        float rest[2] = {sum_of(x), sum_of_squares(x)};
        y = product(x, g);
        row.sums().add(rest, 1, [] {});
        mean = rest[0] * share;
        variance = rest[1] * share - mean * mean;
        scale = rsqrtf((variance < 0.f ? 0.f : variance) + epsilon);  // NaN stays
    }
#pragma unroll
    for (int i = 0; i < Shape::kCount; ++i) y.at[i] = (y.at[i] - mean * g.at[i]) * scale + b.at[i];
    row.store(to, narrow<T>(y));
    team.leave();
}

// ---- on the host

struct ShortGrid {
    Grid grid;
    bool lets_in_early;
};

// Whether the multiprocessors, with a block each, hold two launches or more and few are left over.
inline bool fit_evenly(Machine const& machine, int64_t blocks) {
    int64_t const left = machine.multiprocessors % blocks;
    return 2 * blocks <= machine.multiprocessors &&
           100 * left <= tuning::kMostLeftOver * machine.multiprocessors;
}

// Calls `run(ShortShape, Machine, ShortGrid)`, unless rows are too many or do not fill their
// threads.
template <class T, class Run>
std::optional<cudaError_t> with_short_shape(int64_t rows, int64_t cols, Run run) {
    using namespace tuning;
    constexpr int kVec = kVecBytes / sizeof(T);
    Machine machine;
    if (rows <= 0 || cols <= 0 || cols > kVec * kMaxLanes * kBlocksOfSplit) return std::nullopt;
    if (cudaError_t const status = current_machine(machine); status != cudaSuccess) return status;
    int64_t const slots = cols / kVec;
    if (rows * slots > int64_t{kFewThreads} * machine.multiprocessors) return std::nullopt;
    auto const with = [&]<class Shape>(Shape shape, int blocks) {
        ShortGrid grid;
        grid.grid.cluster = blocks;
        grid.grid.blocks = rows * blocks;
        grid.grid.threads = dim3(static_cast<unsigned>(slots / Shape::kItems / blocks));
        bool const early = rows <= kShortRowsEarly;
        bool const is_long = slots >= kSlotsEarlyFrom;
        bool const by_pairs = early || slots <= kSlotsEarly || is_long;
        if (by_pairs && fit_evenly(machine, grid.grid.blocks))
            grid.grid.most_share = kMostShareOfRows;
        int const least = is_long ? kLongRowsEarly : 100;  // rows on a hundred multiprocessors
        bool const many = 100 * rows > least * machine.multiprocessors;
        if (many && is_long) grid.grid.most_share = kMostShareOfMany, grid.grid.launches = 1;
        grid.lets_in_early = early || many || grid.grid.most_share > 0;
        return run(shape, machine, grid);
    };
    if (rows <= kRowsToSplit && slots > kSlotsToSplit && machine.has_clusters()) {
        if (slots % (32 * kBlocksOfSplit) != 0) return std::nullopt;
        return with(ShortShape<T, 1, Reach::kCluster, 0>{}, kBlocksOfSplit);
    }
    if (slots <= 32 || slots > kMaxLanes || slots % 32 != 0) return std::nullopt;
    bool const in_pairs = slots > kSlotsOfOne && slots % 64 == 0;
    if (in_pairs && slots <= 2 * kSlotsOfOne) return with(ShortShape<T, 2, Reach::kBlock, 8>{}, 1);
    if (in_pairs) return with(ShortShape<T, 2, Reach::kBlock, 16>{}, 1);
    if (slots <= kSlotsOfOne) return with(ShortShape<T, 1, Reach::kBlock, 8>{}, 1);
    return with(ShortShape<T, 1, Reach::kBlock, 32>{}, 1);
}

}  // namespace opfuse::device
