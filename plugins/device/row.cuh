// A row of [rows, cols] tensors: where its 16-byte vectors lie, and a tile that is read once.
#pragma once
#include <cstdint>
#include <cstring>
#include <utility>

#include "launch.cuh"
#include "team.cuh"
#include "vec.cuh"

namespace opfuse::device {

// How a kernel walks along a row.  kVec: elements of a slot, 16 bytes or one element.  kShifted:
// rows may start anywhere, and the elements ahead of the first whole slot and behind the last go
// one by one.  kItems: slots that a thread keeps in registers; 0: any number, in shared memory.
template <int kVecSize, bool kIsShifted, int kItemCount, Reach kTeamReach = Reach::kAny>
struct RowShape {
    static constexpr int kVec = kVecSize;
    static constexpr bool kShifted = kIsShifted;
    static constexpr int kItems = kItemCount;
    static constexpr bool kInWarp = kTeamReach == Reach::kWarp;
    // Threads of a block at most, and such blocks of a multiprocessor at least.
    static constexpr int kLanes = kInWarp ? tuning::kThreadsOfRows : tuning::most_lanes(kItemCount);
    static constexpr int kBlocks =
        kInWarp ? tuning::kBlocksOfRows : tuning::least_blocks(kItemCount);
    // Weights are loaded beside the tile, ahead of what is computed of it.
    static constexpr bool kEarly = kItemCount == 1;
    // A row has as many slots as its lanes keep: the plan asks for three of no others.
    static constexpr bool kExact = kInWarp && kItemCount == 3;
    static constexpr Reach kReach = kTeamReach;
    // Parameters have the type of the tensors: shapes for one reach are for this case alone.
    static constexpr bool kPlain = kTeamReach != Reach::kAny;
    using Team = TeamOf<kTeamReach>;

    // Whether the kernel starts while the one ahead ends, and lets the next one do so.
    static constexpr __host__ __device__ bool overlaps(int64_t tensor_bytes) {
        return !kInWarp || tuning::overlaps_in_warps(tensor_bytes);
    }
};

// Columns [column, column + kSize) of a row; aligned in memory where kSize > 1.
template <int kCount>
struct Span {
    static constexpr int kSize = kCount;
    int column;
};

// A row as one thread sees it.  All tensors of its layout are congruent modulo 16 bytes.
template <class T, class Shape>
class Row {
  public:
    static constexpr int kVec = Shape::kVec;

    // A row past the end is empty.
    __device__ Row(T const* like, int64_t row, int64_t rows, int cols)
        : start_(row * cols), cols_(cols) {
        if constexpr (Shape::kShifted) {
            auto const past = reinterpret_cast<uintptr_t>(like + start_) / sizeof(T) % kVec;
            head_ = min(static_cast<int>((kVec - past) % kVec), cols);
        }
        slots_ = (cols - head_) / kVec;
        if (row >= rows) cols_ = head_ = slots_ = 0;
    }

    // As device::settled.
    __device__ void settle() { asm volatile("" : "+l"(start_), "+r"(slots_)); }

    __device__ int slots() const { return slots_; }
    __device__ Span<kVec> span(int slot) const { return {head_ + slot * kVec}; }
    // How many elements are in no slot, and the i-th of them.
    __device__ int edges() const { return Shape::kShifted ? cols_ - slots_ * kVec : 0; }
    __device__ Span<1> edge(int i) const { return {i < head_ ? i : i + slots_ * kVec}; }

    template <int kSize>
    __device__ Vec<T, kSize> load(T const* tensor, Span<kSize> at) const {
        return *reinterpret_cast<Vec<T, kSize> const*>(tensor + start_ + at.column);
    }
    template <int kSize>
    __device__ void store(T* tensor, Span<kSize> at, Vec<T, kSize> const& item) const {
        device::store(tensor + start_ + at.column, 0, item);
    }

    // A part of a [cols] parameter, which is aligned where the row is not shifted.
    template <int kSize>
    __device__ Raw<T, kSize> parameter(Parameter data, Span<kSize> at) const {
        if constexpr (Shape::kPlain) data.is_float = false;
        if constexpr (!Shape::kShifted || kSize == 1) {
            return load_raw<T, kSize>(data, at.column / kSize);
        } else {
            Raw<T, kSize> raw{{}, data.is_float};
            if (data.is_float) {
                auto const* from = static_cast<float const*>(data.data);
                auto const part = load_anywhere<kSize>(from, at.column, cols_);
                memcpy(raw.word, &part, sizeof(part));
            } else {
                auto const* from = static_cast<T const*>(data.data);
                auto const part = load_anywhere<kSize>(from, at.column, cols_);
                memcpy(raw.word, &part, sizeof(part));
            }
            return raw;
        }
    }

    __device__ void prefetch(T const* tensor, int slot) const {
        constexpr int kSector = 32 / sizeof(T);  // elements of what L2 fetches
        if (slot < slots_ && slot % (kSector / kVec) == 0)
            device::prefetch(tensor + start_ + span(slot).column);
    }

  private:
    int64_t start_;
    int cols_, slots_, head_ = 0;
};

// What a tile keeps of an element: in a warp, where few threads share its instructions, as fp32.
template <class T, class Shape>
using Kept = std::conditional_t<Shape::kInWarp, float, T>;

template <class T, class Shape, int kSize>
__device__ auto keep(Vec<T, kSize> const& item) {
    if constexpr (Shape::kInWarp)
        return widen(item);
    else
        return item;
}

// The same value, which the compiler cannot know: it converts a tile anew in each pass instead of
// keeping every element as fp32 between them, twice the registers.
template <class T, int kSize>
__device__ Vec<T, kSize> opaque(Vec<T, kSize> item) {
    if constexpr (sizeof(item) % 4 == 0 && sizeof(T) < 4) {
        uint32_t word[sizeof(item) / 4];
        memcpy(word, &item, sizeof(item));
#pragma unroll
        for (uint32_t& part : word) asm volatile("" : "+r"(part));
        memcpy(&item, word, sizeof(item));
    }
    return item;
}

// A value across a branch, in whole registers: nvcc would move the halves of a vector one by one.
template <class Value, bool kWhole>
struct Words {
    __device__ void put(Value const& value) {
        memcpy(word, &value, sizeof(value));
        if constexpr (kWhole)
#pragma unroll
            for (uint32_t& part : word) asm volatile("" : "+r"(part));
    }
    __device__ Value get() const {
        Value value;
        memcpy(&value, word, sizeof(value));
        return value;
    }

    uint32_t word[(sizeof(Value) + 3) / 4];
};

__device__ inline int dynamic_shared_bytes() {
    int bytes;
    asm("mov.u32 %0, %dynamic_smem_size;" : "=r"(bytes));
    return bytes;
}

// What `make(span)` gives for each slot of a tile: when the tile is filled where kEarly, else when
// asked.
template <class Shape, bool kEarly, class Make>
struct Beside {
    using Item = decltype(std::declval<Make>()(Span<Shape::kVec>{}));
    using Edge = decltype(std::declval<Make>()(Span<1>{}));

    __device__ auto at(int i, Span<Shape::kVec> span) const {
        if constexpr (kEarly)
            return kept[i];
        else
            return make(span);
    }
    __device__ auto at_edge(Span<1> span) const {
        if constexpr (kEarly)
            return edge;
        else
            return make(span);
    }

    Make make;
    Item kept[kEarly ? Shape::kItems : 1];
    Edge edge;
};

// One thread's slots of a row, or of its slots [first, last): every lanes-th of its team; and one
// of the row's edges, with its first slots.  Where registers (kItems > 0) or shared memory
// (kItems == 0) hold them, they are made once; `again(span)` makes the others anew each time.
template <class Element, class T, class Shape, class Again>
class RowTile {
  public:
    static constexpr int kVec = Shape::kVec, kItems = Shape::kItems;
    using Item = Vec<Element, kVec>;

    __device__ RowTile(typename Shape::Team const& team, Row<T, Shape> const& row, Again again,
                       int first, int last)
        : row_(row), again_(again), first_(first + team.lane()), last_(last), lanes_(team.lanes()) {
        extern __shared__ uint4 memory[];
        shared_ = reinterpret_cast<Item*>(memory) + threadIdx.x;
        if constexpr (kItems == 0)
            room_ = dynamic_shared_bytes() / static_cast<int>(sizeof(Item) * blockDim.x);
        has_edge_ = Shape::kShifted && first == 0 && team.lane() < row.edges();
        if (has_edge_) edge_at_ = row.edge(team.lane());
    }

    // Makes every slot: all `load(span)` ahead of the first `make(span, loaded)`, and all of those
    // ahead of the first `publish(span, item)`.  What is beside it and early comes behind the
    // loads.
    template <class Load, class Make, class Publish, class... Sides>
    __device__ void fill(Load load, Make make, Publish publish, Sides&... beside) {
        if constexpr (kItems > 0) {
            using Loaded = decltype(load(Span<kVec>{}));
            Words<Loaded, Shape::kPlain && (sizeof(Loaded) > kVecBytes)> loaded[kItems];
            decltype(load(Span<1>{})) loaded_edge;
#pragma unroll
            for (int i = 0; i < kItems; ++i)
                if (has(i)) loaded[i].put(load(span(i)));
            if (Shape::kShifted && has_edge_) loaded_edge = load(edge_at_);
            (take(beside), ...);
#pragma unroll
            for (int i = 0; i < kItems; ++i)
                if (has(i)) kept_[i] = make(span(i), loaded[i].get());
            if (Shape::kShifted && has_edge_) edge_ = make(edge_at_, loaded_edge);
#pragma unroll
            for (int i = 0; i < kItems; ++i)
                if (has(i)) publish(span(i), kept_[i]);
        } else {
            for (int i = 0; has(i); ++i) {
                Item const item = make(span(i), load(span(i)));
                publish(span(i), item);
                if (i < room_) shared_[i * blockDim.x] = item;
            }
            if (Shape::kShifted && has_edge_) edge_ = make(edge_at_, load(edge_at_));
        }
        if (Shape::kShifted && has_edge_) publish(edge_at_, edge_);
    }
    template <class Load, class... Sides>
    __device__ void fetch(Load load, Sides&... beside) {
        auto const same = [](auto, auto const& item) { return item; };
        fill(load, same, [](auto, auto const&) {}, beside...);
    }

    // What `make(span)` gives for each slot and the edge.
    template <bool kEarly = Shape::kEarly, class Make>
    __device__ Beside<Shape, kEarly, Make> beside(Make make) const {
        return {make, {}, {}};
    }

    // `use(span, item, beside...)` for each slot and the edge.
    template <class Use, class... Sides>
    __device__ void for_each(Use use, Sides const&... beside) const {
        if constexpr (kItems > 0) {
#pragma unroll
            for (int i = 0; i < kItems; ++i)
                if (has(i)) use(span(i), opaque(kept_[i]), beside.at(i, span(i))...);
        } else {
            for (int i = 0; has(i); ++i)
                use(span(i), i < room_ ? shared_[i * blockDim.x] : again_(span(i)),
                    beside.at(i, span(i))...);
        }
        if constexpr (Shape::kShifted)
            if (has_edge_) use(edge_at_, edge_, beside.at_edge(edge_at_)...);
    }

    // Puts `change(element)` in the place of each element; false where the tile is not in registers
    // and stays as it is.
    template <class Change>
    __device__ bool replace(Change change) {
        if constexpr (kItems > 0) {
#pragma unroll
            for (Item& item : kept_)
#pragma unroll
                for (Element& element : item.at) element = change(element);
            if constexpr (Shape::kShifted) edge_.at[0] = change(edge_.at[0]);
        }
        return kItems > 0;
    }

    // This thread's sum of `term(element)`; as two where it is waited for.
    template <class Term>
    __device__ float sum(Term term) const {
        constexpr int kChains = Shape::kEarly && Shape::kPlain ? 2 : 1;
        float total[kChains]{};
        for_each([&](auto at, auto const& item) {
#pragma unroll
            for (int i = 0; i < at.kSize; ++i) total[i % kChains] += term(to_float(item.at[i]));
        });
        return kChains == 1 ? total[0] : total[0] + total[kChains - 1];
    }

    // How many elements the team's `warp` has.
    __device__ float count_of(int warp) const {
        int count = warp == 0 ? row_.edges() : 0;
        int const left = last_ - 32 * warp;
        if constexpr (kItems > 0) {
#pragma unroll
            for (int i = 0; i < kItems; ++i) count += min(max(left - i * lanes_, 0), 32) * kVec;
        } else {
            int const rounds = last_ / lanes_;
            count += (rounds * 32 + min(max(left - rounds * lanes_, 0), 32)) * kVec;
        }
        return static_cast<float>(count);
    }
    // This thread's, the squares around their own mean.
    __device__ Moments moments() const {
        int count = has_edge_ ? 1 : 0;
        if constexpr (kItems > 0) {
#pragma unroll
            for (int i = 0; i < kItems; ++i) count += has(i) ? kVec : 0;
        } else if (has(0)) {
            count += ((last_ - first_ - 1) / lanes_ + 1) * kVec;
        }
        float const values = static_cast<float>(count);
        float const share = count > 0 ? __fdividef(1.f, values) : 0.f;
        float const mean = sum([](float a) { return a; }) * share;
        return {values, mean, sum([mean](float a) { return (a - mean) * (a - mean); })};
    }

  private:
    template <bool kEarly, class Make>
    __device__ void take(Beside<Shape, kEarly, Make>& beside) const {
        if constexpr (kEarly) {
#pragma unroll
            for (int i = 0; i < kItems; ++i)
                if (has(i)) beside.kept[i] = beside.make(span(i));
            if (Shape::kShifted && has_edge_) beside.edge = beside.make(edge_at_);
        }
    }

    __device__ bool has(int i) const { return first_ + (Shape::kExact ? 0 : i * lanes_) < last_; }
    __device__ Span<kVec> span(int i) const { return row_.span(first_ + i * lanes_); }

    Row<T, Shape> const& row_;
    Again again_;
    int first_, last_, lanes_, room_ = 0;
    bool has_edge_ = false;
    Span<1> edge_at_{0};
    Vec<Element, 1> edge_;
    Item* shared_;
    Item kept_[kItems > 0 ? kItems : 1];
};

template <class Element, class T, class Shape, class Again>
__device__ RowTile<Element, T, Shape, Again> make_tile(typename Shape::Team const& team,
                                                       Row<T, Shape> const& row, Again again) {
    return {team, row, again, 0, row.slots()};
}

// What `body(row, index)` does for each row of this thread, in the order that early launches need:
// fetch the first row of `inputs` into L2, wait, work.  The loop is uniform within a cluster, so
// that `body` may synchronise; rows past the end are empty.
template <class Shape, class T, class Body, class... Inputs>
__device__ void for_each_row(typename Shape::Team& team, int64_t rows, int cols, Body body,
                             T const* like, Inputs const*... inputs) {
    int const shift = __ffs(team.blocks()) - 1;  // a power of two
    int64_t first = static_cast<int64_t>(blockIdx.x >> shift) * blockDim.y;
    Row<T, Shape> row(like, first + threadIdx.y, rows, cols);
    auto const fetch = [&](Row<T, Shape> const& of) {
#pragma unroll
        for (int i = 0; i < Shape::kItems; ++i) {
            of.prefetch(like, team.lane() + i * team.lanes());
            (of.prefetch(inputs, team.lane() + i * team.lanes()), ...);
        }
    };
    bool const overlaps = Shape::overlaps(rows * cols * int64_t{sizeof(T)});
    if (tuning::kPrefetch && overlaps) fetch(row);
    int const row_bytes = cols * static_cast<int>((1 + sizeof...(inputs)) * sizeof(T));
    int const ahead = Shape::kReach == Reach::kCluster ? tuning::kBytesAhead / row_bytes : 0;
    row.settle();
    team.meet();
    wait_in_turn(overlaps);
    while (true) {
        if (ahead > 0 && first + ahead < rows)
            fetch(Row<T, Shape>(like, first + ahead, rows, cols));
        body(row, first + threadIdx.y);
        first += static_cast<int64_t>(gridDim.x >> shift) * blockDim.y;
        if (first >= rows) break;
        row = Row<T, Shape>(like, first + threadIdx.y, rows, cols);
    }
    team.leave();
}

}  // namespace opfuse::device
