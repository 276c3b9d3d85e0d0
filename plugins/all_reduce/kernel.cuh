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
__global__ void __launch_bounds__(tuning::kMostLanes)
    alone_kernel(__grid_constant__ Reduction<T> const call, bool aligned) {
    device::TeamOf<device::Reach::kBlock> team;
    Walk<T, kItems> const walk(call, aligned, team);
    Finish finish(call, walk, team);
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
template <class T, int kItems, int kRanks, int kLanes>
__global__ void __launch_bounds__(kLanes)
    one_shot_kernel(__grid_constant__ Reduction<T> const call,
                    __grid_constant__ device::Peers const peers, bool aligned) {
    device::Team team;
    Walk<T, kItems> const walk(call, aligned, team);
    Finish finish(call, walk, team);
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
    int64_t const step = gridDim.x >> shift, first = blockIdx.x >> shift;
    uint4* const inbox = mail.inbox(mail.rank());
    for (int64_t row = first - step; row < call.rows; row += step) {
        if (row + step < call.rows) send_row(row + step);
        if (row < first) {
            mail.settle();
            finish.fetch();
            continue;
        }
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
template <class T, int kItems, int kRanks, int kLanes>
__global__ void __launch_bounds__(kLanes)
    two_shot_kernel(__grid_constant__ Reduction<T> const call,
                    __grid_constant__ device::Peers const peers, bool aligned) {
    device::TeamOf<device::Reach::kBlock> team;
    Walk<T, kItems> const walk(call, aligned, team);
    Finish finish(call, walk, team);
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
        walk.each([&](int part, int) {
            uint4 own[kRanks];
#pragma unroll
            for (int i = 1; i < kRanks; ++i) {
                int64_t const row = group * ranks + (mail.rank() + i) % ranks;
                if (i < ranks && row < call.rows)
                    own[i] = bits_of<T>(load_at(call.x, walk.place(row, part)));
            }
#pragma unroll
            for (int i = 1; i < kRanks; ++i) {
                int const to = (mail.rank() + i) % ranks;
                if (i < ranks && group * ranks + to < call.rows)
                    device::send(mail.inbox(to) + place_of(group, part) +
                                     static_cast<int64_t>(mail.place_at(to)) * walk.parts(),
                                 own[i]);
            }
        });
    };
    uint4* const inbox = mail.inbox(mail.rank());
    auto const add_up_group = [&](int64_t group) {
        int64_t const row = group * ranks + mail.rank();
        if (row >= call.rows) return;
        finish.row(row, [&](int part, Place const& place) {
            auto const own = load_at(call.x, place);
            auto const residual = finish.residual(place);
            uint4 got[kRanks - 1];
            mail.take(got, inbox + place_of(group, part), walk.parts(), others);
            auto const sum = finish.round(add_up<T>(mail, own, got), residual, place);
            for (int i = 1; i < ranks; ++i) {
                int const to = (mail.rank() + i) % ranks;
                device::send(mail.inbox(to) + sums + row * walk.parts() + part, bits_of<T>(sum));
            }
            return sum;
        });
    };
    auto const collect_group = [&](int64_t group) {
#pragma unroll 1
        for (int i = 1; i < ranks; ++i) {
            int64_t const row = group * ranks + (mail.rank() + i) % ranks;
            if (row >= call.rows) continue;
            finish.row(row, [&](int part, Place const&) {
                uint4 got[1];
                mail.take(got, inbox + sums + row * walk.parts() + part, 0, 1);
                return vector_of<T>(got[0]);
            });
        }
    };
    int64_t const first = blockIdx.x, step = gridDim.x;
    for (int64_t group = first - step; group < groups; group += step) {
        if (group + step < groups) send_group(group + step);
        if (group < first) {
            mail.settle();
            finish.fetch();
            continue;
        }
        add_up_group(group);
        collect_group(group);
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

// What a kernel is made for.  A thread keeps kItems parts of a row: one, or none, where it reads
// back what it stored.
template <int kItemsOfThread, int kMostRanks, int kMostLanes>
struct Form {
    static constexpr int kItems = kItemsOfThread, kRanks = kMostRanks, kLanes = kMostLanes;
};

// `run(form, lanes)`, for rows on `cluster` blocks; kHasTwo where two ranks have a form of their
// own.
template <class T, bool kHasTwo, class Run>
cudaError_t with_form(int ranks, int64_t parts, int cluster, Run run) {
    using tuning::kMostLanes, tuning::kLanesForMany;
    int64_t const warp = 32 * cluster, lanes = (parts + warp - 1) / warp * 32;
    auto const count = static_cast<int>(lanes);
    // Few models speak float over ranks: one form for all.
    if constexpr (sizeof(T) < sizeof(float)) {
        if constexpr (kHasTwo)
            if (ranks == 2 && lanes <= kMostLanes) return run(Form<1, 2, kMostLanes>{}, count);
        if (ranks <= 4 && lanes > kLanesForMany && lanes <= kMostLanes)
            return run(Form<1, 4, kMostLanes>{}, count);
    }
    if (lanes <= kLanesForMany) return run(Form<1, device::kMostRanks, kLanesForMany>{}, count);
    return run(Form<0, device::kMostRanks, kLanesForMany>{}, kLanesForMany);
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

// Calls `run` with as many rows at once as `most` says, in slices as alike as multiples of `unit`
// can be; `most` is one.
template <class T, class Run>
cudaError_t in_slices(Reduction<T> call, int64_t most, int64_t unit, Run run) {
    int64_t const rows = call.rows;
    if (most < 1) return cudaErrorInvalidValue;
    int64_t const slices = (rows + most - 1) / most;
    int64_t const each = (rows + slices * unit - 1) / (slices * unit) * unit;
    for (int64_t first = 0; first < rows; first += each) {
        call.rows = std::min(each, rows - first);
        if (cudaError_t const status = run(call); status != cudaSuccess) return status;
        int64_t const done = each * call.cols;
        call.x += done, call.y += done, call.count -= done;
        if (call.norm != Norm::kNone) call.residual += done, call.sum += done;
    }
    return cudaSuccess;
}

template <class T>
cudaError_t reduce_alone(Reduction<T> const& call, cudaStream_t stream) {
    if (call.rows == 0 || call.cols == 0) return cudaSuccess;
    int64_t const lanes = (parts_of(call) + 31) / 32 * 32;
    bool const keeps = lanes <= tuning::kMostLanes;
    return launch_resident(keeps ? alone_kernel<T, 1> : alone_kernel<T, 0>, call.rows,
                           keeps ? static_cast<int>(lanes) : tuning::kMostLanes, 1, stream, call,
                           is_aligned(call));
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
    return with_form<T, true>(peers.size, parts, cluster, [&]<class Form>(Form, int lanes) {
        return in_slices(reduction, most, 1, [&](Reduction<T> const& call) {
            return launch_resident(one_shot_kernel<T, Form::kItems, Form::kRanks, Form::kLanes>,
                                   call.rows * cluster, lanes, cluster, stream, call, peers,
                                   is_aligned(call));
        });
    });
}

template <class T>
cudaError_t reduce_two_shot(Reduction<T> const& reduction, device::Peers const& peers,
                            cudaStream_t stream) {
    if (reduction.rows == 0 || reduction.cols == 0) return cudaSuccess;
    int64_t const parts = parts_of(reduction), ranks = peers.size;
    int64_t const groups = device::kInboxVectors / (2 * ranks - 1) / parts;
    return with_form<T, false>(peers.size, parts, 1, [&]<class Form>(Form, int lanes) {
        return in_slices(reduction, groups * ranks, ranks, [&](Reduction<T> const& call) {
            return launch_resident(two_shot_kernel<T, Form::kItems, Form::kRanks, Form::kLanes>,
                                   (call.rows + ranks - 1) / ranks, lanes, 1, stream, call, peers,
                                   is_aligned(call));
        });
    });
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
