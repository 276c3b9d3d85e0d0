// Which of launch.h's ways a sum takes.
#pragma once
#include "../communicator/group.h"
#include "../core/types.h"
#include "launch.h"
#include "tuning.h"

namespace opfuse {

// `by_nccl`: NCCL may make the sum where it is faster.
inline Way way_of(Communicator const& group, int64_t bytes, int64_t row_bytes, bool by_nccl) {
    if (group.way != Way::kBySize) return group.way;
    if (by_nccl && group.group && bytes >= tuning::nccl_bytes(group.size)) return Way::kNccl;
    // A group of rows of a two-shot sum has to fit in an inbox.
    int64_t const longest = device::kInboxVectors * 16 / (2 * group.size);
    if (!group.has_peers || (row_bytes > longest && group.group)) return Way::kNccl;
    return bytes <= tuning::one_shot_bytes(group.size) ? Way::kOneShot : Way::kTwoShot;
}

// NCCL adds in the type of x.
template <class T>
cudaError_t reduce_by_nccl(Reduction<T> const& reduction, Communicator const& group, DataType type,
                           cudaStream_t stream) {
    T* const total = reduction.norm == Norm::kNone ? reduction.y : reduction.sum;
    void* const ranks = group.group;
    if (!ranks) throw std::runtime_error("NCCL is not there, or has been stopped");
    group.nccl.check(group.nccl.all_reduce(reduction.x, total, reduction.count, nccl_type(type),
                                           kNcclSum, ranks, stream),
                     "ncclAllReduce");
    if (reduction.norm == Norm::kNone) return cudaSuccess;
    Reduction<T> rest = reduction;
    rest.x = total;
    return reduce_alone(rest, stream);
}

template <class T>
cudaError_t reduce(Reduction<T> const& reduction, int64_t ranks, Call const& call) {
    if (call.alone) return reduce_alone(reduction, call.stream);
    Communicator const* const group = need_group(ranks);
    if (!group) return reduce_alone(reduction, call.stream);
    if (reduction.count == 0) return cudaSuccess;
    int64_t const row_bytes = reduction.cols * static_cast<int64_t>(sizeof(T));
    // Not in fp16: what NCCL has added on its way may overflow where the sum does not.
    DataType const type = call.inputs[0].type;
    bool const by_nccl = reduction.norm == Norm::kNone && type != DataType::kFloat16;
    switch (way_of(*group, reduction.rows * row_bytes, row_bytes, by_nccl)) {
    case Way::kOneShot: return reduce_one_shot(reduction, group->peers, call.stream);
    case Way::kTwoShot: return reduce_two_shot(reduction, group->peers, call.stream);
    default: return reduce_by_nccl(reduction, *group, type, call.stream);
    }
}

}  // namespace opfuse
