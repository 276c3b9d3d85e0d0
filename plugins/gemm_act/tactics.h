// The ways in which the Hopper kernels compute a product, and which one a product takes.
#pragma once
#include <array>
#include <cstdint>

#include "launch.h"

namespace opfuse {

// Values of the attribute `tactic`, which engines keep: a way that goes leaves its number.
enum class Tactic : int32_t {
    kChoose = 0,
    kColumns256 = 1,  // tiles of 256 rows, and so on; 128 columns, of which a warp group has half
    kColumns192 = 2,
    kColumns144 = 3,
    kColumns128 = 4,
    kColumns64 = 5,
    kTurns144 = 6,  // a warp group finishes its tile while the other multiplies
    kTurns128 = 7,
    kNarrow128 = 8,  // gated: 64 columns of y, one warp group
    kParts2 = 9,     // blocks that share a tile's depth; it has 8 to 128 rows, as there are
    kParts3 = 10,
    kParts4 = 11,
    kParts5 = 12,
    kParts8 = 13,
    kBlas = 14,  // by cuBLASLt, where that is and has the epilogue; never chosen unasked
    kTurns192 = 15,
    kNarrow64 = 16,      // 64 rows by 64 columns, one warp group
    kNarrow16 = 17,      // gated: 16 rows
    kNarrowParts2 = 18,  // as kParts2, 16 rows by 64 columns, one warp group
};
inline constexpr int kTactics = 19;

// Blocks that share a tile's depth, of a way for few rows; else 0.
int parts_of(Tactic tactic);

// The fewest rows of their tile that hold all, or 0 where there are too many.
int rows_in_parts(Gemm const& gemm);

struct Estimate {
    Tactic tactic = Tactic::kChoose;
    int64_t nanoseconds = 0;  // on an H100
};

// The ways that suit a product, the fastest first.
struct Ranking {
    std::array<Estimate, kTactics> ways{};
    int count = 0;
};
Ranking rank_tactics(Gemm const& gemm, int multiprocessors);

// `gemm.tactic` where it suits, or else the fastest.
Tactic choose_tactic(Gemm const& gemm, int multiprocessors);

}  // namespace opfuse
