// Quotient and remainder of index arithmetic.
#pragma once
#include <algorithm>
#include <cstdint>
#include <limits>

namespace opfuse::device {

struct Division {
    int64_t whole, rest;
};
struct ShortDivision {
    uint32_t whole, rest;
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

// The same for numbers from 0 to `most`, whatever that is.
struct Divider {
    Divider(int64_t divisor, int64_t most)
        : size(divisor), fits(fits_in(std::max(divisor, most))), divisor(fits ? divisor : 1) {}
    Divider() : Divider(1, 0) {}

    static bool fits_in(int64_t most) { return most <= std::numeric_limits<int32_t>::max(); }

    // Where it fits.
    __device__ ShortDivision divide(uint32_t a) const {
        uint32_t const whole = divisor.quotient(a);
        return {whole, a - whole * divisor.size};
    }
    __device__ Division divide(int64_t a) const {
        if (fits) {
            auto const [whole, rest] = divide(static_cast<uint32_t>(a));
            return {whole, rest};
        }
        int64_t const whole = a / size;
        return {whole, a - whole * size};
    }

    int64_t size;
    bool fits;
    Divisor divisor;
};

}  // namespace opfuse::device
