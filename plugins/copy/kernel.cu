// Copies boxes of memory with strides, several in one launch: Concat, Slice, Transpose.
#include <algorithm>
#include <limits>

#include "../device/division.cuh"
#include "../device/launch.cuh"
#include "launch.h"

namespace opfuse {
namespace {

constexpr int kThreads = 256;  // of a block
constexpr int kItems = 4;      // units that a thread has in flight
constexpr int kTile = kThreads * kItems;
constexpr int kBoxes = 8;  // of a launch: they have to fit in 4 KB of parameters
constexpr int64_t kMostUnits = std::numeric_limits<int32_t>::max();  // device::Divisor's limit

struct Axis {
    device::Divisor size;
    int64_t source, target;  // bytes from one to the next
};

struct Box {
    char const* source;
    char* target;
    int32_t unit, rank, early;
    uint32_t units;
    unsigned last_block;  // the first one that is not this box's
    Axis axes[kMaxAxes];
};

struct Boxes {
    Box at[kBoxes];
};

// ---- kernels

// The bytes ahead of a unit in source and target.
__device__ longlong2 place_of(Box const& box, uint32_t unit) {
    longlong2 place{0, 0};
    for (int axis = box.rank - 1; axis >= 0; --axis) {
        Axis const& along = box.axes[axis];
        uint32_t const whole = along.size.quotient(unit);
        int64_t const index = unit - whole * along.size.size;
        place.x += index * along.source;
        place.y += index * along.target;
        unit = whole;
    }
    return place;
}

template <class Unit>
__device__ void copy_tile(Box const& box, uint32_t first) {
    Unit held[kItems];
    int64_t targets[kItems];
#pragma unroll
    for (int item = 0; item < kItems; ++item) {
        uint32_t const unit = first + item * kThreads;
        if (unit >= box.units) continue;
        longlong2 const place = place_of(box, unit);
        held[item] = *reinterpret_cast<Unit const*>(box.source + place.x);
        targets[item] = place.y;
    }
#pragma unroll
    for (int item = 0; item < kItems; ++item)
        if (first + item * kThreads < box.units)
            *reinterpret_cast<Unit*>(box.target + targets[item]) = held[item];
}

__global__ void __launch_bounds__(kThreads) copy_kernel(Boxes const __grid_constant__ boxes) {
    int number = 0;
    while (blockIdx.x >= boxes.at[number].last_block) ++number;
    Box const& box = boxes.at[number];
    unsigned const first_block = number == 0 ? 0 : boxes.at[number - 1].last_block;
    uint32_t const first = (blockIdx.x - first_block) * kTile + threadIdx.x;
    device::let_next_start();
    if (!box.early) device::wait_for_previous();
    switch (box.unit) {
    case 1: copy_tile<uint8_t>(box, first); break;
    case 2: copy_tile<uint16_t>(box, first); break;
    case 4: copy_tile<uint32_t>(box, first); break;
    case 8: copy_tile<uint2>(box, first); break;
    default: copy_tile<uint4>(box, first); break;
    }
    if (box.early) device::wait_for_previous();  // what waits for this grid waits for that one too
}

// ---- launchers

int64_t units_of(CopiedBox const& box) {
    int64_t units = 1;
    for (int axis = 0; axis < box.rank; ++axis) {
        if (box.sizes[axis] == 0) return 0;
        // Sizes that are not 0 only make it larger; beyond the limit it does not matter how large.
        units = box.sizes[axis] > kMostUnits / units ? kMostUnits + 1 : units * box.sizes[axis];
        if (units > kMostUnits) return units;
    }
    return units;
}

Box described(CopiedBox const& box, uint32_t units, unsigned first_block) {
    Box made{};
    made.source = static_cast<char const*>(box.source);
    made.target = static_cast<char*>(box.target);
    made.unit = box.unit;
    made.rank = box.rank;
    made.early = box.early;
    made.units = units;
    made.last_block = first_block + (units + kTile - 1) / kTile;
    for (int axis = 0; axis < box.rank; ++axis)
        made.axes[axis] = {device::Divisor(box.sizes[axis]), box.source_strides[axis],
                           box.target_strides[axis]};
    return made;
}

}  // namespace

cudaError_t copy(std::vector<CopiedBox> const& boxes, cudaStream_t stream) {
    device::Machine machine;
    cudaError_t status = device::current_machine(machine);
    Boxes some{};
    int count = 0;
    unsigned blocks = 0;
    auto const flush = [&] {
        if (count == 0) return;
        device::Grid const grid{.blocks = blocks, .threads = dim3(kThreads)};
        status = device::launch(copy_kernel, machine, grid, stream, some);
        count = 0;
        blocks = 0;
    };
    for (CopiedBox const& box : boxes) {
        int64_t const units = units_of(box);
        if (units > kMostUnits) return cudaErrorInvalidValue;
        if (units == 0) continue;
        if (count == kBoxes) flush();
        if (status != cudaSuccess) return status;
        some.at[count] = described(box, static_cast<uint32_t>(units), blocks);
        blocks = some.at[count++].last_block;
    }
    if (status == cudaSuccess) flush();
    return status;
}

}  // namespace opfuse
