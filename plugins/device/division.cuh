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

// Divides by a number that the host knows: one multiplication, exact for 0 <= a < 2^31 (Granlund
// and Montgomery, 1994).
struct Divisor {
    static constexpr int kBits = 31;

    explicit Divisor(int64_t divisor) : size(static_cast<uint32_t>(divisor)) {
        while ((uint64_t{1} << shift) < size) ++shift;
        factor = static_cast<uint32_t>((uint64_t{1} << (kBits + shift)) / size) + 1;
    }
    Divisor() : Divisor(1) {}

    __device__ uint32_t quotient(uint32_t a) const {
        return static_cast<uint32_t>((uint64_t{a} * factor) >> (kBits + shift));
    }
    __device__ uint32_t remainder(uint32_t a) const { return a - quotient(a) * size; }

    uint32_t size, factor;
    int shift = 0;
};

}  // namespace opfuse::device
