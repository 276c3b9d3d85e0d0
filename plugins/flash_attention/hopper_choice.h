// Which of several Hopper kernels takes the least time, for host code.
#pragma once
#include <algorithm>
#include <cmath>

#include "../device/launch.cuh"
#include "launch.h"

namespace opfuse {

// What a launch takes in microseconds, fitted to an H100's times of 12 to 384 heads and 77 to 4096
// keys (benchmarks/results/attention_h100_variants.txt).
struct TileCost {
    int rows, keys;  // of a tile, and of one step of it
    int resident;    // blocks that share a multiprocessor
    float start;
    float tile, step;  // of one multiprocessor
    float alone;       // a step of a block that has nobody beside it
    float late = 0.f;  // where not all blocks are there from the start
};

inline bool sees_all(Attention const& a) { return a.behind == kUnlimited && a.ahead == kUnlimited; }

// Whether the queries see about as many keys each as the last of them.
inline bool sees_alike(Attention const& a) {
    bool const few = int64_t{4} * a.queries <= a.keys;
    return a.behind == kUnlimited && (a.ahead == kUnlimited || few);
}

// Multiprocessors that take whole tiles wait for the one that has the most; causal tiles differ,
// and are dealt out so that all have as much.
inline float launch_time(Attention const& a, int multiprocessors, TileCost const& cost) {
    auto const blocks = [](float count, int size) { return std::ceil(count / size); };
    float const keys = a.keys, queries = a.queries, each = multiprocessors;
    float const tiles = a.batch * a.heads * blocks(queries, cost.rows);
    float const late = tiles > cost.resident * each ? cost.late : 0.f;
    if (sees_alike(a)) {
        float const rounds = std::ceil(tiles / each), steps = blocks(keys, cost.keys);
        float const busy = rounds * cost.step, idle = blocks(rounds, cost.resident) * cost.alone;
        return cost.start + rounds * cost.tile + steps * std::max(busy, idle) + late;
    }
    float const ends = a.ahead == kUnlimited ? 0.f : std::max(queries - cost.rows, 0.f);
    float const window = std::min(static_cast<float>(a.behind), keys) +
                         std::min(static_cast<float>(a.ahead), keys) + cost.rows;
    float const most = blocks(std::min(keys, window), cost.keys);
    float const seen = std::max(std::min(keys - ends / 2, window), 1.f);
    float const busy = tiles / each * std::min(seen / cost.keys + .5f, most) * cost.step;
    return cost.start + std::max(1.f, tiles / each) * cost.tile +
           std::max(busy, most * cost.alone) + late;
}

// Steps that are worth what a block's share of them costs.
inline constexpr int kLeastShare = 4;

// The same of tiles that see keys alike, those of the last round shared out (hopper_rest.cuh).
// Their parts' results, of `size` columns, are written and read.
inline float shared_time(Attention const& a, int multiprocessors, TileCost const& cost, int size) {
    constexpr float kStart = 4.f, kBytes = 2.4e6f;  // a microsecond
    auto const blocks = [](float count, int each) { return std::ceil(count / each); };
    float const rounds = a.batch * a.heads * blocks(a.queries, cost.rows) / multiprocessors;
    float const steps = std::max(rounds * blocks(a.keys, cost.keys), 1.f * kLeastShare);
    float const parts = (1.f + rounds - std::floor(rounds)) * multiprocessors;
    float const part = sizeof(float) * cost.rows * (size + 8.f);
    return cost.start + std::ceil(rounds) * cost.tile + steps * cost.step + kStart +
           2 * parts * part / kBytes;
}

// The one of the least time: the first where there is no device.  And the one that takes less when
// it shares out its last round, 0 where none does.
struct Choice {
    size_t index = 0, shared = 0;
};

// Tiles from `sharing` on, which is not 0, can share.  Those of fewer queries may be the better
// ones: 128 queries fill a tile of 128, and two thirds of one of 192.
template <size_t kCount>
Choice fastest(Attention const& a, TileCost const (&costs)[kCount], size_t sharing, int size) {
    device::Machine machine;
    Choice best;
    if (device::current_machine(machine) != cudaSuccess) return best;
    float least = launch_time(a, machine.multiprocessors, costs[0]);
    for (size_t i = 1; i < kCount; ++i) {
        float const time = launch_time(a, machine.multiprocessors, costs[i]);
        if (time < least) least = time, best.index = i;
    }
    for (size_t i = sharing; sees_alike(a) && i < kCount; ++i) {
        float const time = shared_time(a, machine.multiprocessors, costs[i], size);
        if (time < least) least = time, best.shared = i;
    }
    return best;
}

}  // namespace opfuse
