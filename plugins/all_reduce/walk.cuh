// Rows as one thread of a block has them: parts of 16 bytes, wherever the tensor lies.
#pragma once
#include <cstdint>
#include <cstring>

#include "../device/team.cuh"
#include "../device/vec.cuh"
#include "launch.h"

namespace opfuse {

template <class T>
inline constexpr int kVecOf = device::kVecBytes / sizeof(T);

template <class T>
using VecOf = device::Vec<T, kVecOf<T>>;

template <class T>
__device__ uint4 bits_of(VecOf<T> const& vector) {
    uint4 words;
    memcpy(&words, &vector, sizeof(words));
    return words;
}

template <class T>
__device__ VecOf<T> vector_of(uint4 const& words) {
    VecOf<T> vector;
    memcpy(&vector, &words, sizeof(vector));
    return vector;
}

// Part `part` of a row, kVecOf<T> columns.
struct Place {
    int64_t first;  // its first element, of the tensor
    int column;     // and of the row
    int count;      // how many of its elements exist
    bool aligned;   // 16 bytes of every tensor
};

// The parts of rows that one thread has: every lanes-th of a row, of those of its team.
template <class T, int kItems>
class Walk {
  public:
    static constexpr int kVec = kVecOf<T>;

    template <class Team>
    __device__ Walk(Reduction<T> const& call, bool aligned, Team const& team)
        : lane_(team.lane()),
          lanes_(team.lanes()),
          cols_(static_cast<int>(call.cols)),
          parts_(parts_of(cols_)),
          count_(call.count),
          aligned_(aligned) {}

    __device__ static int parts_of(int cols) { return (cols + kVec - 1) / kVec; }
    __device__ int parts() const { return parts_; }

    // `use(part, item)` for each part of this thread; the item counts them, up to kItems.
    template <class Use>
    __device__ void each(Use use) const {
        if constexpr (kItems > 0) {
#pragma unroll
            for (int i = 0; i < kItems; ++i) {
                int const part = lane_ + i * lanes_;
                if (part < parts_) use(part, i);
            }
        } else {
            for (int part = lane_; part < parts_; part += lanes_) use(part, 0);
        }
    }

    __device__ Place place(int64_t row, int part) const {
        int const column = part * kVec;
        int64_t const first = row * cols_ + column;
        int const of_row = min(kVec, cols_ - column);
        int const count = static_cast<int>(min(int64_t{of_row}, max(count_ - first, int64_t{0})));
        return {first, column, count, aligned_ && count == kVec};
    }

  private:
    int const lane_, lanes_, cols_, parts_;
    int64_t const count_;
    bool const aligned_;
};

// What does not lie on 16 bytes goes element by element, through the front of a vector that moves
// on: a loop that is not unrolled, since every kernel has many of these.
template <class Element, int kVec>
__device__ void push_front(device::Vec<Element, kVec>& vector, Element const& element) {
#pragma unroll
    for (int i = kVec - 1; i > 0; --i) vector.at[i] = vector.at[i - 1];
    vector.at[0] = element;
}

template <class Element, int kVec>
__device__ Element pop_front(device::Vec<Element, kVec>& vector) {
    Element const element = vector.at[0];
#pragma unroll
    for (int i = 1; i < kVec; ++i) vector.at[i - 1] = vector.at[i];
    return element;
}

// Zeros where nothing exists.
template <class T>
__device__ VecOf<T> load_at(T const* data, Place const& place) {
    if (place.aligned) return device::load<kVecOf<T>>(data + place.first, 0);
    VecOf<T> out{};
#pragma unroll 1
    for (int i = place.count - 1; i >= 0; --i) push_front(out, data[place.first + i]);
    return out;
}

template <class T>
__device__ void store_at(T* data, Place const& place, VecOf<T> vector) {
    if (place.aligned) return device::store(data + place.first, 0, vector);
#pragma unroll 1
    for (int i = 0; i < place.count; ++i) data[place.first + i] = pop_front(vector);
}

template <class T>
__device__ device::Vec<float, kVecOf<T>> parameter_at(device::Parameter data, Place const& place) {
    device::Vec<float, kVecOf<T>> out{};
    if (!data.data) return out;
    if (place.aligned) return device::load_parameter<T, kVecOf<T>>(data, place.column / kVecOf<T>);
#pragma unroll 1
    for (int i = place.count - 1; i >= 0; --i)
        push_front(out, device::load_parameter<T, 1>(data, place.column + i).at[0]);
    return out;
}

template <int kVec, class T>
__device__ void add(device::Vec<float, kVec>& total, device::Vec<T, kVec> const& more) {
#pragma unroll
    for (int i = 0; i < kVec; ++i) total.at[i] += device::to_float(more.at[i]);
}

}  // namespace opfuse
