#include "tactics.h"

#include <algorithm>

namespace opfuse {
namespace {

// A way's tile, and its times on an H100 whose other multiprocessors do the same, from
// benchmarks/results/gemm_h100_networks.txt and gemm_h100_variants.txt.
struct Way {
    Tactic tactic;
    int rows, cols;    // of y
    int64_t stage;     // nanoseconds of 64 of the depth
    int64_t tile;      // of a tile beyond its stages
    int64_t finished;  // of an activation or a residual, beyond what is hidden
    int cluster = 1;   // blocks that have neighbouring columns
};

using enum Tactic;
// kTurns192 finishes 3072x768x3072 with GELU as fast as kTurns144, but behind other kernels its
// clusters start 1 to 3 us later: six layers of BERT with their norms take 533 us with it, 517 with
// kTurns144.
constexpr Way kPlainWays[] = {
    {kColumns256, 256, 128, 700, 2400, 3500}, {kColumns192, 192, 128, 570, 1400, 1300},
    {kColumns144, 144, 128, 450, 1400, 1300}, {kColumns128, 128, 128, 365, 1300, 1200},
    {kColumns64, 64, 128, 225, 300, 500},     {kTurns144, 144, 128, 445, 100, 700},
    {kTurns128, 128, 128, 375, 700, 550, 2},  {kTurns192, 192, 128, 530, 500, 1600, 2},
    {kNarrow64, 64, 64, 120, 0, 0},
};
// kNarrow128's tile is longer than alone: four layers of Llama with their norms take 251 us with it
// (128 rows), 247 with kColumns64.
constexpr Way kGatedWays[] = {
    {kColumns128, 128, 128, 760, 1400, 0},
    {kColumns64, 64, 128, 520, 1400, 0},
    {kNarrow128, 128, 64, 370, 6500, 0},
    {kTurns192, 192, 64, 530, 500, 0},
};
constexpr int64_t kStart =
    2500;  // from the launch to the first stage, and from the last to the end
constexpr int64_t kStreamStart = 1500;
constexpr int64_t kBytes = 2700;  // of a weight that memory gives in a nanosecond

constexpr int64_t over(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t clusters_of(Way const& way, Gemm const& g) {
    return over(g.rows, way.rows) * over(over(g.cols, way.cols), way.cluster);
}

// Tiles of 64 by 64 read x and the weight so often that L2 is what several rounds of them wait for:
// 192x4096x4096 takes 21.6 us with them, 16.5 with kColumns64.
bool suits(Way const& way, Gemm const& g, int multiprocessors) {
    if (way.tactic == kNarrow64) return g.rows > 32 && clusters_of(way, g) <= multiprocessors;
    if (!g.gated) return true;
    if (way.rows > 64) return g.rows > (way.rows > 128 ? 128 : 64);
    return g.rows <= 128;
}

int64_t of_memory(Gemm const& g) { return int64_t{g.depth} * g.cols * (g.gated ? 4 : 2) / kBytes; }

int64_t of_way(Way const& way, Gemm const& g, int multiprocessors) {
    int64_t const clusters = clusters_of(way, g);
    int64_t const rounds = over(clusters, std::max(1, multiprocessors / way.cluster));
    bool const plain = g.activation == device::Activation::kNone && !g.residual;
    // A multiprocessor whose neighbour has nothing to do takes in more.
    bool const half = 2 * clusters * way.cluster <= multiprocessors;
    int64_t const stage = half ? way.stage * 4 / 5 : way.stage;
    int64_t tile = way.tile + (plain ? 0 : way.finished);
    // Of one tile a block there is no other to wait for, nor to finish it beside.
    if (rounds == 1 && way.tactic == kColumns128) tile /= 2;
    if (rounds == 1 && way.tactic == kTurns128) tile += 1000;
    int64_t const computed = kStart + rounds * (over(g.depth, 64) * stage + tile);
    // Of ways that wait for memory, that with less to do besides.
    return std::max(computed, kStart + 500 + of_memory(g)) + computed / 32;
}

// Up to 64 rows, or 128 where most multiprocessors have two tiles of 64 columns and none has more,
// or blocks share tiles: 128x4096x14336 takes 44 us so and 48 by tiles of 64 by 64, but
// 100x4096x11008, with 172 of them, takes 49, cuBLAS 35.  With one tile for nearly each, of 64 rows
// or of all, 100x4096x4096 takes 14.0 us, 100x4096x6144 20.7; from some 112 rows on others are as
// fast, and behind other kernels faster.
bool suits_stream(Gemm const& g, int multiprocessors) {
    if (g.rows <= 64) return true;
    if (g.rows > 128 || g.gated) return false;
    int64_t const tiles = over(g.cols, 64);
    // Of all multiprocessors, in sixths.
    auto const are_for = [&](int low, int high) {
        return 6 * tiles > int64_t{low} * multiprocessors &&
               6 * tiles <= int64_t{high} * multiprocessors;
    };
    if (are_for(0, 1) || are_for(9, 12)) return true;
    return g.rows <= 112 && (are_for(2, 3) || are_for(4, 6));
}

void add(Ranking& ranking, Tactic tactic, int64_t nanoseconds) {
    ranking.ways[ranking.count++] = {tactic, nanoseconds};
}

}  // namespace

Ranking rank_tactics(Gemm const& g, int multiprocessors) {
    Ranking ranking;
    if (suits_stream(g, multiprocessors)) add(ranking, kStream, kStreamStart + of_memory(g));
    if (g.gated) {
        for (Way const& way : kGatedWays)
            if (suits(way, g, multiprocessors))
                add(ranking, way.tactic, of_way(way, g, multiprocessors));
    } else {
        for (Way const& way : kPlainWays)
            if (suits(way, g, multiprocessors))
                add(ranking, way.tactic, of_way(way, g, multiprocessors));
    }
    std::stable_sort(
        ranking.ways.begin(), ranking.ways.begin() + ranking.count,
        [](Estimate const& a, Estimate const& b) { return a.nanoseconds < b.nanoseconds; });
    return ranking;
}

Tactic choose_tactic(Gemm const& g, int multiprocessors) {
    Ranking const ranking = rank_tactics(g, multiprocessors);
    for (int i = 0; i < ranking.count; ++i)
        if (static_cast<int32_t>(ranking.ways[i].tactic) == g.tactic) return ranking.ways[i].tactic;
    return ranking.ways[0].tactic;
}

}  // namespace opfuse
