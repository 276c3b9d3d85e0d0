// Quotient and remainder of index arithmetic.
#pragma once
#include <cstdint>

namespace opfuse::device {

struct Division {
    int64_t whole, rest;
};

// a / b of numbers that are not negative.  Division of 64 bits takes several times the
// instructions of one of 32, and most counts of rows fit in those.
__device__ inline Division divide(int64_t a, int64_t b) {
    if (((a | b) >> 32) == 0) {
        auto const short_a = static_cast<uint32_t>(a), short_b = static_cast<uint32_t>(b);
        uint32_t const whole = short_a / short_b;
        return {whole, short_a - whole * short_b};
    }
    int64_t const whole = a / b;
    return {whole, a - whole * b};
}

}  // namespace opfuse::device
