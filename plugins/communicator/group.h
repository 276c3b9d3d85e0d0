// The communicator that a node was cut for.
#pragma once
#include <stdexcept>
#include <string>

#include "communicator.h"

namespace opfuse {

// Null where one rank is all.  Throws where `size` ranks are not there, or one was lost.
inline Communicator const* need_group(int64_t size) {
    Communicator const* const found = communicator();
    int const ranks = found ? found->size : 1;
    std::string const cut = "the node is cut for " + std::to_string(size) + " ranks";
    if (!found && size != 1)
        throw std::runtime_error(cut +
                                 ", and this process is none: start it with torchrun or mpirun");
    if (ranks != size) throw std::runtime_error(cut + ", and there are " + std::to_string(ranks));
    if (size == 1) return nullptr;
    if (found->health() != device::Health::kWell)
        throw std::runtime_error("a rank was lost, and the others have stopped");
    int device = -1;
    if (cudaGetDevice(&device) != cudaSuccess || device != found->device)
        throw std::runtime_error("the communicator is of GPU " + std::to_string(found->device) +
                                 ", and this thread uses GPU " + std::to_string(device));
    return found;
}

inline void check_group_size(int64_t size) {
    if (size < 1 || size > device::kMostRanks)
        throw std::invalid_argument("attribute 'group_size' is " + std::to_string(size) +
                                    ", need 1 to " + std::to_string(device::kMostRanks));
}

// Sums are all that is reduced to.
inline void check_reduce_op(std::string const& op) {
    if (op != "sum")
        throw std::invalid_argument("attribute 'reduce_op' is '" + op + "', need 'sum'");
}

}  // namespace opfuse
