// The communicator's C functions.
#include "../communicator/communicator.h"

#include "../core/error.h"
#include "opfuse.h"

#define OPFUSE_EXPORT extern "C" __attribute__((visibility("default")))

using namespace opfuse;

static_assert(OPFUSE_COMM_CARD == kCardBytes);

OPFUSE_EXPORT int opfuse_comm_open(int32_t rank, int32_t size, int64_t timeout_ms, char const* nccl,
                                   void* card) {
    return guarded("communicator", -1,
                   [&] { return open_communicator(rank, size, timeout_ms, nccl, card), 0; });
}

OPFUSE_EXPORT int opfuse_comm_join(void const* cards) {
    return guarded("communicator", -1, [&] { return join_communicator(cards), 0; });
}

OPFUSE_EXPORT int32_t opfuse_comm_state() { return health_of_communicator(); }
OPFUSE_EXPORT void opfuse_comm_abort() { abort_communicator(); }
OPFUSE_EXPORT char const* opfuse_comm_transport() { return transport_of_communicator(); }

OPFUSE_EXPORT int opfuse_comm_close() {
    return guarded("communicator", -1, [] { return close_communicator(), 0; });
}
