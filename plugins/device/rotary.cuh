// Rotary position embedding (Su et al. 2021) of what one thread holds of a head.
#pragma once
#include "division.cuh"
#include "vec.cuh"

namespace opfuse::device {

// Two vectors of a head that one thread works on.  Each of their elements turns with another one
// of the same two: half by half, element i of `a` with element i of `b`; interleaved, each two
// neighbours.
template <int kVec>
struct Pair {
    Vec<float, kVec> a, b;
};

// Where the vectors of a pair stand in their head, counted in vectors.
struct Place {
    int a, b;
};

// The place of pair `index` in a head of which the first `turning` vectors turn, an even number.
// The pairs behind those are neighbours that do not turn; of an odd rest the last has only an `a`.
template <bool kInterleaved>
__device__ Place place_of(int index, int turning) {
    int const half = turning / 2;
    if (!kInterleaved && index < half) return {index, index + half};
    return {2 * index, 2 * index + 1};
}

// Both vectors of a parameter that starts `offset` elements into its data.
template <class T, int kVec>
__device__ Pair<kVec> load_pair(Parameter parameter, int64_t offset, Place place) {
    int const bytes = parameter.is_float ? sizeof(float) : sizeof(T);
    parameter.data = static_cast<char const*>(parameter.data) + offset * bytes;
    return {load_parameter<T, kVec>(parameter, place.a),
            load_parameter<T, kVec>(parameter, place.b)};
}

template <int kVec>
__device__ void add(Pair<kVec>& x, Pair<kVec> const& other) {
#pragma unroll
    for (int i = 0; i < kVec; ++i) {
        x.a.at[i] += other.a.at[i];
        x.b.at[i] += other.b.at[i];
    }
}

template <int kVec>
__device__ void scale(Pair<kVec>& x, float factor, Pair<kVec> const& gamma) {
#pragma unroll
    for (int i = 0; i < kVec; ++i) {
        x.a.at[i] *= factor * gamma.a.at[i];
        x.b.at[i] *= factor * gamma.b.at[i];
    }
}

template <int kVec>
__device__ float squares(Pair<kVec> const& x) {
    float sum = 0.f;
#pragma unroll
    for (int i = 0; i < kVec; ++i) sum += x.a.at[i] * x.a.at[i] + x.b.at[i] * x.b.at[i];
    return sum;
}

// The sum of `value` over the blockDim.x threads of a head, in each of them.
// blockDim.x is a power of two up to 32; all threads of the warp call it.
__device__ inline float lane_sum(float value) {
    for (int offset = blockDim.x / 2; offset > 0; offset /= 2)
        value += __shfl_xor_sync(0xffffffffu, value, offset);
    return value;
}

__device__ inline void turn(float& low, float& high, float cos_low, float cos_high, float sin_low,
                            float sin_high) {
    float const turned = low * cos_low - high * sin_low;
    high = high * cos_high + low * sin_high;
    low = turned;
}

template <bool kInterleaved, int kVec>
__device__ void turn(Pair<kVec>& x, Pair<kVec> const& cos, Pair<kVec> const& sin) {
    if constexpr (kInterleaved && kVec > 1) {
#pragma unroll
        for (int i = 0; i < kVec; i += 2) {
            int const k = i + 1;
            turn(x.a.at[i], x.a.at[k], cos.a.at[i], cos.a.at[k], sin.a.at[i], sin.a.at[k]);
            turn(x.b.at[i], x.b.at[k], cos.b.at[i], cos.b.at[k], sin.b.at[i], sin.b.at[k]);
        }
    } else {
#pragma unroll
        for (int i = 0; i < kVec; ++i)
            turn(x.a.at[i], x.b.at[i], cos.a.at[i], cos.b.at[i], sin.a.at[i], sin.b.at[i]);
    }
}

// `item`, or minus that.
template <class T, int kVec>
__device__ Vec<T, kVec> with_sign(Vec<T, kVec> item, bool minus) {
    if constexpr (sizeof(item) % sizeof(uint32_t) == 0) {
        constexpr uint32_t kSigns = sizeof(T) == 4 ? 0x80000000u : 0x80008000u;
        uint32_t words[sizeof(item) / sizeof(uint32_t)];
        memcpy(words, &item, sizeof(item));
#pragma unroll
        for (uint32_t& word : words) word ^= minus ? kSigns : 0;
        memcpy(&item, words, sizeof(item));
    } else {
        for (T& element : item.at) element = minus ? -element : element;
    }
    return item;
}

// How one vector of a head turns, the `at`-th of which the first `turning` do: by `other`, its
// elements' partners, which lie half of those further, or behind, or are its neighbours.
template <bool kInterleaved, int kVec>
class Turn {
  public:
    __device__ Turn(int at, int turning) {
        if constexpr (kInterleaved && kVec == 1) {
            low_ = at % 2 == 0;
            step_ = low_ ? 1 : -1;
        } else {
            low_ = at < turning / 2;
            step_ = low_ ? turning / 2 : -(turning / 2);
        }
    }

    template <class T>
    __device__ Vec<T, kVec> other(T const* x, int64_t vector, Vec<T, kVec> const& own) const {
        if constexpr (!kInterleaved || kVec == 1) {
            return load<kVec>(x, vector + step_);
        } else {
            Vec<T, kVec> other;
#pragma unroll
            for (int i = 0; i < kVec; ++i) other.at[i] = own.at[i ^ 1];
            return other;
        }
    }

    template <class T>
    __device__ Vec<T, kVec> apply(Vec<T, kVec> const& own, Vec<T, kVec> const& other,
                                  Vec<float, kVec> const& cos, Vec<float, kVec> const& sin) const {
        auto turned = widen(own);
        constexpr bool kNeighbours = kInterleaved && kVec > 1;
        auto const partner = widen(with_sign(other, !kNeighbours && low_));
#pragma unroll
        for (int i = 0; i < kVec; ++i) {
            float const angle = kNeighbours && i % 2 == 0 ? -sin.at[i] : sin.at[i];
            turned.at[i] = turned.at[i] * cos.at[i] + partner.at[i] * angle;
        }
        return narrow<T>(turned);
    }

  private:
    bool low_;
    int step_;  // in vectors
};

}  // namespace opfuse::device
