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
    {kColumns256, 256, 128, 700, 2400, 3500},
    {kColumns192, 192, 128, 570, 1400, 1300},
    {kColumns144, 144, 128, 450, 1400, 1300},
    {kColumns128, 128, 128, 365, 1300, 1200},
    {kColumns64, 64, 128, 200, 0, 500},
    {kTurns144, 144, 128, 445, 100, 700},
    {kTurns128, 128, 128, 375, 700, 550, 2},
    {kTurns192, 192, 128, 530, 500, 1600, 2},
    {kNarrow64, 64, 64, 96, 0, 0},
};
// kNarrow128's tile is longer than alone: four layers of Llama with their norms take 251 us with it
// (128 rows), 247 with kColumns64.
constexpr Way kGatedWays[] = {
    {kColumns128, 128, 128, 760, 1400, 0}, {kColumns64, 64, 128, 520, 1400, 0},
    {kNarrow128, 128, 64, 370, 6500, 0},   {kTurns192, 192, 64, 530, 500, 0},
    {kNarrow16, 16, 64, 300, 1400, 0},
};
constexpr int64_t kStart =
    2500;  // from the launch to the first stage, and from the last to the end
constexpr int64_t kBytes = 2700;  // of a weight that memory gives in a nanosecond

constexpr int64_t over(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Tiles of few rows are for few rows, but those of 64 by 64 not for the fewest: 16x14336x4096 takes
// 50 us with them, 44 in parts.
bool suits(Way const& way, Gemm const& g) {
    if (way.tactic == kNarrow64 && g.rows <= 32) return false;
    if (!g.gated) return way.rows > 64 || g.rows <= 128;
    if (way.rows > 64) return g.rows > (way.rows > 128 ? 128 : 64);
    return way.rows > 16 || g.rows <= 16;
}

int64_t of_memory(Gemm const& g) { return int64_t{g.depth} * g.cols * (g.gated ? 4 : 2) / kBytes; }

int64_t of_way(Way const& way, Gemm const& g, int multiprocessors) {
    int64_t const clusters = over(g.rows, way.rows) * over(over(g.cols, way.cols), way.cluster);
    int64_t const rounds = over(clusters, std::max(1, multiprocessors / way.cluster));
    bool const plain = g.activation == device::Activation::kNone && !g.residual;
    int64_t const tile = over(g.depth, 64) * way.stage + way.tile + (plain ? 0 : way.finished);
    int64_t const computed = kStart + rounds * tile;
    // Of ways that wait for memory, that with less to do besides.
    return std::max(computed, kStart + 500 + of_memory(g)) + computed / 32;
}

// Memory is what few rows wait for.  More parts ask it for more at once, but what they ask for is
// in more places: for a short depth eight of them are fastest, else two, and five where rows are
// many.
int64_t of_parts(int parts, Gemm const& g) {
    bool const few = rows_in_parts(g) <= 32;
    int const best = !few ? 5 : g.depth <= 2560 ? 8 : 2;
    int64_t const start = few ? (best == 8 ? kStart : kStart + 1000) : 6000;
    return start + of_memory(g) + (parts == best ? 0 : 1000);
}

void add(Ranking& ranking, Tactic tactic, int64_t nanoseconds) {
    ranking.ways[ranking.count++] = {tactic, nanoseconds};
}

void add_parts(Ranking& ranking, Gemm const& g, int multiprocessors) {
    if (rows_in_parts(g) == 0) return;
    // First of equals: 16x14336x4096 takes 41.4 us, in wider parts 44; but 1x4096x14336 48 and 43.
    bool const narrow = g.rows <= 16 && over(g.cols, 64) <= multiprocessors / 2;
    if (narrow && over(g.depth, 64) >= 2) add(ranking, kNarrowParts2, kStart + of_memory(g));
    for (Tactic const tactic : {kParts2, kParts3, kParts4, kParts5, kParts8}) {
        int const parts = parts_of(tactic);
        // All have room at once, and something to multiply.
        bool const fits = over(g.cols, 128) * parts <= 2 * multiprocessors;
        if (fits && over(g.depth, 64) >= parts) add(ranking, tactic, of_parts(parts, g));
    }
}

}  // namespace

int parts_of(Tactic tactic) {
    switch (tactic) {
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
        if (g.rows <= rows) return rows;
    return 0;
}

Ranking rank_tactics(Gemm const& g, int multiprocessors) {
    Ranking ranking;
    if (g.gated) {
        for (Way const& way : kGatedWays)
            if (suits(way, g)) add(ranking, way.tactic, of_way(way, g, multiprocessors));
    } else {
        for (Way const& way : kPlainWays)
            if (suits(way, g)) add(ranking, way.tactic, of_way(way, g, multiprocessors));
        add_parts(ranking, g, multiprocessors);
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
