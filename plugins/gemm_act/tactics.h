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
    kBlas = 14,      // by cuBLASLt, where that is and has the epilogue; never chosen unasked
    kTurns192 = 15,
    kNarrow64 = 16,  // 64 rows by 64 columns, one warp group
    kStream = 19,    // few rows, the weight in the order in which memory is read fastest
};
inline constexpr int kTactics = 20;

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
