// A row from the sum over ranks on: residual, bias, and norm.
#pragma once
#include "../device/launch.cuh"
#include "walk.cuh"

namespace opfuse {

// What follows the sum over ranks.
template <class T, int kItems, class Team>
class Finish {
  public:
    __device__ Finish(Reduction<T> const& call, Walk<T, kItems> const& walk, Team& team)
        : call_(call), walk_(walk), team_(team), share_(device::settled(1.f / call.cols)) {}

    // Once, behind wait_for_previous(): weights are on their way while other ranks are waited for.
    __device__ void fetch() {
        if (call_.norm == Norm::kNone) return;
        walk_.each([&](int part, int) {
            Place const place = walk_.place(0, part);
            if constexpr (kItems == 1) gamma_ = parameter_at<T>(call_.gamma, place);
            for (device::Parameter const& data : {call_.gamma, call_.beta, call_.bias}) {
                int const bytes = data.is_float ? sizeof(float) : sizeof(T);
                if (data.data)
                    device::prefetch(static_cast<char const*>(data.data) + place.column * bytes);
            }
        });
    }

    // x of all ranks -> a row's part of `sum`.
    __device__ VecOf<T> round(device::Vec<float, kVecOf<T>> total, VecOf<T> const& residual,
                              Place const& place) const {
        if (call_.norm != Norm::kNone) {
            add(total, residual);
            if (call_.bias.data) add(total, parameter_at<T>(call_.bias, place));
        }
        return device::narrow<T>(total);
    }
    // Asked for ahead of what comes from other ranks.
    __device__ VecOf<T> residual(Place const& place) const {
        return call_.norm != Norm::kNone ? load_at(call_.residual, place) : VecOf<T>{};
    }

    // `sum_of(part, place)` is a part of the row's sum.  By all threads of the team.
    template <class SumOf>
    __device__ void row(int64_t row, SumOf sum_of) {
        T* const sum = call_.norm == Norm::kNone ? call_.y : call_.sum;
        walk_.each([&](int part, int item) {
            Place const place = walk_.place(row, part);
            VecOf<T> const made = sum_of(part, place);
            store_at(sum, place, made);
            if constexpr (kItems > 0) kept_[item] = made;
        });
        if (call_.norm == Norm::kNone) return;
        float mean = 0.f, scale = 0.f;
#pragma unroll 1
        for (bool of_squares : {false, true}) {
            if (!of_squares && call_.norm != Norm::kLayer) continue;
            float const found = average(row, mean, of_squares);
            (of_squares ? scale : mean) = found;
        }
        scale = rsqrtf(scale + call_.epsilon);
        walk_.each([&](int part, int item) {
            Place const place = walk_.place(row, part);
            auto const gamma = kItems == 1 ? gamma_ : parameter_at<T>(call_.gamma, place);
            auto const beta = parameter_at<T>(call_.beta, place);
            auto wide = device::widen(again(place, item));
#pragma unroll
            for (int i = 0; i < kVecOf<T>; ++i)
                wide.at[i] = (wide.at[i] - mean) * scale * gamma.at[i] + beta.at[i];
            store_at(call_.y, place, device::narrow<T>(wide));
        });
    }

  private:
    // This thread has stored it, and reads back what it does not keep.
    __device__ VecOf<T> again(Place const& place, int item) const {
        if constexpr (kItems > 0)
            return kept_[item];
        else
            return load_at(call_.sum, place);
    }

    // Of the sums of a row, or of the squares of what they differ from `mean`.
    __device__ float average(int64_t row, float mean, bool of_squares) {
        float own = 0.f;
        walk_.each([&](int part, int item) {
            Place const place = walk_.place(row, part);
            auto const wide = device::widen(again(place, item));
#pragma unroll
            for (int i = 0; i < kVecOf<T>; ++i) {
                float const off = wide.at[i] - mean;
                if (i < place.count) own += of_squares ? off * off : wide.at[i];
            }
        });
        return team_.sum(own) * share_;
    }

    Reduction<T> const& call_;
    Walk<T, kItems> const& walk_;
    Team& team_;
    float const share_;
    VecOf<T> kept_[kItems > 0 ? kItems : 1];
    device::Vec<float, kVecOf<T>> gamma_;  // one item has the same columns of every row
};

// The sum over ranks in their order; `got` has those of the others, in their order.
template <class T, int kOthers>
__device__ device::Vec<float, kVecOf<T>> add_up(device::Mail const& mail, VecOf<T> const& own,
                                                uint4 const (&got)[kOthers]) {
    device::Vec<float, kVecOf<T>> total{};
#pragma unroll
    for (int i = 0; i < kOthers; ++i) {
        if (i >= mail.size() - 1) break;
        if (i == mail.rank()) add(total, own);
        add(total, vector_of<T>(got[i]));
    }
    if (mail.rank() == mail.size() - 1) add(total, own);
    return total;
}

}  // namespace opfuse
