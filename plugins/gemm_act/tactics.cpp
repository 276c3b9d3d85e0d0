#include "tactics.h"

#include <algorithm>

namespace opfuse {
namespace {

// A way's tile, and its times on an H100 whose other multiprocessors do the same, from
// benchmarks/results/gemm_h100_tactics.txt.
struct Way {
    Tactic tactic;
    int rows, cols;    // of y
    int64_t stage;     // nanoseconds of 64 of the depth
    int64_t tile;      // of a tile beyond its stages
    int64_t finished;  // of an activation or a residual, where nothing is multiplied meanwhile
    int cluster = 1;   // blocks that have neighbouring rows
    int parts = 1;     // blocks that have a part of the depth each
    int resident = 1;  // blocks on a multiprocessor
};

using enum Tactic;
constexpr Way kPlainWays[] = {
    {kColumns256, 256, 128, 640, 1400, 3000}, {kColumns192, 192, 128, 520, 1400, 2400},
    {kColumns144, 144, 128, 500, 1400, 2000}, {kColumns128, 128, 128, 370, 1300, 1800},
    {kColumns64, 64, 128, 250, 1300, 1000},   {kTurns144, 144, 128, 475, 100, 700},
    {kTurns128, 128, 128, 400, 100, 900, 2},  {kPairs144, 144, 256, 700, 1400, 2000, 1, 2},
};
constexpr Way kGatedWays[] = {
    {kColumns128, 128, 128, 660, 1400, 0},
    {kColumns64, 64, 128, 520, 1400, 0},
    {kNarrow128, 128, 64, 370, 1400, 0},
};
constexpr int64_t kStart =
    2500;  // from the launch to the first stage, and from the last to the end
constexpr int64_t kExchange = 1500;  // of sums between the parts of a tile

constexpr int64_t over(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t estimate(Way const& way, Gemm const& g, int multiprocessors) {
    int64_t const clusters =
        over(over(g.rows, way.rows), way.cluster) * over(g.cols, way.cols) * way.parts;
    int64_t const rounds =
        over(clusters, std::max(1, multiprocessors * way.resident / way.cluster));
    int64_t const stages = over(over(g.depth, 64), way.parts);
    bool const plain = g.activation == device::Activation::kNone && !g.residual;
    return kStart + (way.parts > 1 ? kExchange : 0) +
           rounds * (stages * way.stage + way.tile + (plain ? 0 : way.finished));
}

void add(Ranking& ranking, Way const& way, Gemm const& g, int multiprocessors) {
    if (over(g.depth, 64) < way.parts) return;  // each has something to multiply
    ranking.ways[ranking.count++] = {way.tactic, estimate(way, g, multiprocessors)};
}

void add_parts(Ranking& ranking, Gemm const& g, int multiprocessors) {
    int const rows = rows_in_parts(g);
    if (rows == 0) return;
    for (Tactic const tactic : {kParts1, kParts2, kParts3, kParts4, kParts5, kParts8}) {
        int const parts = parts_of(tactic);
        if (g.gated && (parts == 3 || parts > 4)) continue;  // each finishes some of 4 warps' sums
        Way way{tactic, rows, g.gated ? 64 : 128, rows <= 64 ? 250 : 370, 0, 0, 1, parts};
        if (rows * (g.gated ? 2 : 1) <= 32) way.resident = 2;
        add(ranking, way, g, multiprocessors);
    }
}

}  // namespace

int parts_of(Tactic tactic) {
    switch (tactic) {
    case kParts1: return 1;
    case kParts2: return 2;
    case kParts3: return 3;
    case kParts4: return 4;
    case kParts5: return 5;
    case kParts8: return 8;
    default: return 0;
    }
}

int rows_in_parts(Gemm const& g) {
    for (int const rows : {8, 16, 32, 64, 128})
        if (g.rows <= rows && !(g.gated && rows == 128)) return rows;
    return 0;
}

Ranking rank_tactics(Gemm const& g, int multiprocessors) {
    Ranking ranking;
    if (g.gated)
        for (Way const& way : kGatedWays) add(ranking, way, g, multiprocessors);
    else
        for (Way const& way : kPlainWays) add(ranking, way, g, multiprocessors);
    add_parts(ranking, g, multiprocessors);
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
