// Sums over ranks through each other's memory, with the norm that follows; mail.cuh says how data
// travels.  A row travels as 16-byte vectors of its own, the last filled up with zeros, wherever x
// lies, so that the ranks agree on it.  Pure CUDA.
#pragma once
#include <algorithm>
#include <type_traits>

#include "../device/mail.cuh"
#include "finish.cuh"
#include "tuning.h"

namespace opfuse {

// ---- kernels

template <class T, int kItems>
__global__ void __launch_bounds__(tuning::most_lanes(1))
    alone_kernel(__grid_constant__ Reduction<T> const call, bool aligned) {
    device::Team team;
    Walk<T, kItems> const walk(call, aligned, team);
    Finish<T, kItems> finish(call, walk, team);
    device::let_next_start();
    device::wait_for_previous();
    finish.fetch();
    for (int64_t row = blockIdx.x; row < call.rows; row += gridDim.x)
        finish.row(row, [&](int, Place const& place) {
            return finish.round(device::widen(load_at(call.x, place)), finish.residual(place),
                                place);
        });
}

// An inbox holds x of all other ranks, one behind another.  A row is sent while the one ahead of it
// is waited for.
template <class T, int kItems, int kRanks>
__global__ void __launch_bounds__(tuning::most_lanes(kRanks))
    one_shot_kernel(__grid_constant__ Reduction<T> const call,
                    __grid_constant__ device::Peers const peers, bool aligned) {
    device::Team team;
    Walk<T, kItems> const walk(call, aligned, team);
    Finish<T, kItems> finish(call, walk, team);
    device::let_next_start();
    device::wait_for_previous();
    device::Mail mail(peers);
    int64_t const all = call.rows * walk.parts();
    auto const send_row = [&](int64_t row) {
        walk.each([&](int part, int) {
            uint4 const own = bits_of<T>(load_at(call.x, walk.place(row, part)));
            int64_t const at = row * walk.parts() + part;
#pragma unroll
            for (int i = 1; i < kRanks; ++i) {
                if (i >= mail.size()) break;
                int const to = (mail.rank() + i) % mail.size();
                device::send(mail.inbox(to) + mail.place_at(to) * all + at, own);
            }
        });
    };
    int const shift = __ffs(team.blocks()) - 1;  // a power of two
    int64_t const step = gridDim.x >> shift;
    int64_t row = blockIdx.x >> shift;
    send_row(row);
    mail.settle();
    finish.fetch();
    uint4* const inbox = mail.inbox(mail.rank());
    for (; row < call.rows; row += step) {
        if (row + step < call.rows) send_row(row + step);
        finish.row(row, [&](int part, Place const& place) {
            auto const own = load_at(call.x, place);
            auto const residual = finish.residual(place);
            uint4 got[kRanks - 1];
            mail.take(got, inbox + row * walk.parts() + part, all, mail.size() - 1);
            return finish.round(add_up<T>(mail, own, got), residual, place);
        });
    }
    team.leave();
}

// Rows go in groups of one a rank, who adds it up.  An inbox holds the others' x of its rows, and
// behind them the sums of all rows.
template <class T, int kItems>
__global__ void __launch_bounds__(tuning::most_lanes(device::kMostRanks))
    two_shot_kernel(__grid_constant__ Reduction<T> const call,
                    __grid_constant__ device::Peers const peers, bool aligned) {
    device::Team team;
    Walk<T, kItems> const walk(call, aligned, team);
    Finish<T, kItems> finish(call, walk, team);
    device::let_next_start();
    device::wait_for_previous();
    device::Mail mail(peers);
    int const ranks = mail.size(), others = ranks - 1;
    int64_t const groups = (call.rows + ranks - 1) / ranks;
    int64_t const sums = groups * others * walk.parts();  // where they begin
    auto const place_of = [&](int64_t group, int part) {
        return group * others * walk.parts() + part;
    };
    auto const send_group = [&](int64_t group) {
        for (int i = 1; i < ranks; ++i) {
            int const to = (mail.rank() + i) % ranks;
            int64_t const row = group * ranks + to;
            if (row >= call.rows) continue;
            walk.each([&](int part, int) {
                uint4 const own = bits_of<T>(load_at(call.x, walk.place(row, part)));
                device::send(mail.inbox(to) + place_of(group, part) +
                                 static_cast<int64_t>(mail.place_at(to)) * walk.parts(),
                             own);
            });
        }
    };
    int64_t group = blockIdx.x;
    send_group(group);
    mail.settle();
    finish.fetch();
    uint4* const inbox = mail.inbox(mail.rank());
    for (; group < groups; group += gridDim.x) {
        if (group + gridDim.x < groups) send_group(group + gridDim.x);
        int64_t const row = group * ranks + mail.rank();
        if (row < call.rows)
            finish.row(row, [&](int part, Place const& place) {
                auto const own = load_at(call.x, place);
                auto const residual = finish.residual(place);
                uint4 got[device::kMostRanks - 1];
                mail.take(got, inbox + place_of(group, part), walk.parts(), others);
                auto const sum = finish.round(add_up<T>(mail, own, got), residual, place);
                for (int i = 1; i < ranks; ++i) {
                    int const to = (mail.rank() + i) % ranks;
                    device::send(mail.inbox(to) + sums + row * walk.parts() + part,
                                 bits_of<T>(sum));
                }
                return sum;
            });
        for (int i = 1; i < ranks; ++i) {
            int64_t const theirs = group * ranks + (mail.rank() + i) % ranks;
            if (theirs >= call.rows) continue;
            finish.row(theirs, [&](int part, Place const&) {
                uint4 got[1];
                mail.take(got, inbox + sums + theirs * walk.parts() + part, 0, 1);
                return vector_of<T>(got[0]);
            });
        }
    }
}

// x of [outer, inner] travels flat, as `parts` vectors.
template <class Element>
__global__ void __launch_bounds__(tuning::kGatherLanes)
    gather_kernel(Element* y, Element const* x, int64_t first, int64_t count, int64_t inner,
                  __grid_constant__ device::Peers const peers, bool aligned, bool whole) {
    constexpr int kVec = kVecOf<Element>;
    device::let_next_start();
    device::wait_for_previous();
    device::Mail mail(peers);
    int64_t const parts = (count + kVec - 1) / kVec, step = int64_t{gridDim.x} * blockDim.x;
    int64_t const begin = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    auto const place_of = [&](int64_t part) {
        int const there = static_cast<int>(min(int64_t{kVec}, count - part * kVec));
        return Place{first + part * kVec, 0, there, aligned && there == kVec};
    };
    auto const put = [&](int rank, Place const& place, device::Vec<Element, kVec> const& vector) {
        int64_t const row = place.first / inner, column = place.first % inner;
        int64_t at = (row * mail.size() + rank) * inner + column;
        if (whole && place.count == kVec) return device::store(y + at, 0, vector);
        int64_t left = inner - column;
        for (int i = 0; i < place.count; ++i, ++at, --left) {
            if (left == 0) at += (mail.size() - 1) * inner, left = inner;
            y[at] = vector.at[i];
        }
    };
    for (int64_t part = begin; part < parts; part += step) {
        Place const place = place_of(part);
        auto const own = load_at(x, place);
        for (int i = 1; i < mail.size(); ++i) {
            int const to = (mail.rank() + i) % mail.size();
            device::send(mail.inbox(to) + mail.place_at(to) * parts + part, bits_of<Element>(own));
        }
        put(mail.rank(), place, own);
    }
    mail.settle();
    for (int i = 1; i < mail.size(); ++i) {
        int const from = (mail.rank() + i) % mail.size();
        int const slot = from < mail.rank() ? from : from - 1;
        for (int64_t part = begin; part < parts; part += step) {
            uint4 got[1];
            mail.take(got, mail.inbox(mail.rank()) + slot * parts + part, 0, 1);
            put(from, place_of(part), vector_of<Element>(got[0]));
        }
    }
}

// ---- launchers

// As many blocks as can be resident at once: they wait for blocks of other ranks, which may not be
// behind blocks that never end.
template <class Kernel, class... Arguments>
cudaError_t launch_resident(Kernel kernel, int64_t blocks, int lanes, int cluster,
                            cudaStream_t stream, Arguments... arguments) {
    device::Machine machine;
    cudaError_t status = device::current_machine(machine);
    int resident = 0;
    if (status == cudaSuccess)
        status = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, lanes, 0);
    if (status != cudaSuccess) return status;
    int64_t const most = std::max<int64_t>(int64_t{resident} * machine.multiprocessors, 1);
    device::Grid const grid{std::min(blocks, most), dim3(lanes), cluster};
    return device::launch(kernel, machine, grid, stream, arguments...);
}

template <class T>
bool is_aligned(Reduction<T> const& call) {
    return device::aligned(call.x, call.residual, call.y, call.sum, call.gamma.data, call.beta.data,
                           call.bias.data) &&
           call.cols % kVecOf<T> == 0;
}

template <class T>
int64_t parts_of(Reduction<T> const& call) {
    return (call.cols + kVecOf<T> - 1) / kVecOf<T>;
}

// `run(std::integral_constant<int, kItems>, lanes)`, for rows on `cluster` blocks.  What a block of
// 1024 threads does not keep as one item a thread, it reads back.
template <int kRanks, class Run>
cudaError_t with_items(int64_t parts, int cluster, Run run) {
    constexpr int kMostLanes = tuning::most_lanes(kRanks);
    auto const lanes = [&](int items) {
        int const warp = 32 * items * cluster;
        return static_cast<int>((parts + warp - 1) / warp * 32);
    };
    if (parts <= kMostLanes * cluster) return run(std::integral_constant<int, 1>{}, lanes(1));
    if constexpr (kMostLanes < 1024)
        if (parts <= 2 * kMostLanes * cluster)
            return run(std::integral_constant<int, 2>{}, lanes(2));
    return run(std::integral_constant<int, 0>{}, kMostLanes);
}

// Blocks of a cluster on one row: several, where few rows would leave most of the GPU idle.
template <class T>
cudaError_t blocks_of_row(Reduction<T> const& call, int& blocks) {
    using namespace tuning;
    device::Machine machine;
    cudaError_t const status = device::current_machine(machine);
    bool const few = call.rows <= kRowsToSplit && call.norm != Norm::kNone;
    blocks = few && machine.has_clusters() && parts_of(call) > kPartsToSplit ? kBlocksOfSplit : 1;
    return status;
}

// Calls `run` with as many rows at once as `most` says.
template <class T, class Run>
cudaError_t in_slices(Reduction<T> call, int64_t most, Run run) {
    int64_t const rows = call.rows;
    if (most < 1) return cudaErrorInvalidValue;
    for (int64_t first = 0; first < rows; first += most) {
        call.rows = std::min(most, rows - first);
        if (cudaError_t const status = run(call); status != cudaSuccess) return status;
        int64_t const done = most * call.cols;
        call.x += done, call.y += done, call.count -= done;
        if (call.norm != Norm::kNone) call.residual += done, call.sum += done;
    }
    return cudaSuccess;
}

template <class T>
cudaError_t reduce_alone(Reduction<T> const& call, cudaStream_t stream) {
    if (call.rows == 0 || call.cols == 0) return cudaSuccess;
    auto const launch = [&]<int kItems>(std::integral_constant<int, kItems>, int lanes) {
        return launch_resident(alone_kernel<T, kItems>, call.rows, lanes, 1, stream, call,
                               is_aligned(call));
    };
    return with_items<1>(parts_of(call), 1, launch);
}

template <class T>
cudaError_t reduce_one_shot(Reduction<T> const& reduction, device::Peers const& peers,
                            cudaStream_t stream) {
    if (reduction.rows == 0 || reduction.cols == 0) return cudaSuccess;
    int64_t const parts = parts_of(reduction);
    int64_t const most = device::kInboxVectors / (peers.size - 1) / parts;
    int cluster = 1;
    if (cudaError_t const status = blocks_of_row(reduction, cluster); status != cudaSuccess)
        return status;
    auto const with_ranks = [&]<int kRanks>(std::integral_constant<int, kRanks>) {
        auto const launch = [&]<int kItems>(std::integral_constant<int, kItems>, int lanes) {
            return in_slices(reduction, most, [&](Reduction<T> const& call) {
                return launch_resident(one_shot_kernel<T, kItems, kRanks>, call.rows * cluster,
                                       lanes, cluster, stream, call, peers, is_aligned(call));
            });
        };
        return with_items<kRanks>(parts, cluster, launch);
    };
    if (peers.size == 2) return with_ranks(std::integral_constant<int, 2>{});
    return with_ranks(std::integral_constant<int, device::kMostRanks>{});
}

template <class T>
cudaError_t reduce_two_shot(Reduction<T> const& reduction, device::Peers const& peers,
                            cudaStream_t stream) {
    if (reduction.rows == 0 || reduction.cols == 0) return cudaSuccess;
    int64_t const parts = parts_of(reduction), ranks = peers.size;
    int64_t const groups = device::kInboxVectors / (2 * ranks - 1) / parts;
    auto const launch = [&]<int kItems>(std::integral_constant<int, kItems>, int lanes) {
        return in_slices(reduction, groups * ranks, [&](Reduction<T> const& call) {
            return launch_resident(two_shot_kernel<T, kItems>, (call.rows + ranks - 1) / ranks,
                                   lanes, 1, stream, call, peers, is_aligned(call));
        });
    };
    return with_items<device::kMostRanks>(parts, 1, launch);
}

template <class Element>
cudaError_t gather(Element* y,        // [outer, ranks, inner]
                   Element const* x,  // [outer, inner]
                   int64_t outer, int64_t inner, device::Peers const& peers, cudaStream_t stream) {
    constexpr int kVec = kVecOf<Element>;
    int64_t const all = outer * inner, most = device::kInboxVectors / (peers.size - 1) * kVec;
    bool const whole = device::aligned(y) && inner % kVec == 0;
    for (int64_t first = 0; first < all; first += most) {
        int64_t const count = std::min(most, all - first);
        int64_t const blocks =
            (count + kVec * tuning::kGatherLanes - 1) / (kVec * tuning::kGatherLanes);
        cudaError_t const status =
            launch_resident(gather_kernel<Element>, blocks, tuning::kGatherLanes, 1, stream, y, x,
                            first, count, inner, peers, device::aligned(x), whole);
        if (status != cudaSuccess) return status;
    }
    return cudaSuccess;
}

}  // namespace opfuse
