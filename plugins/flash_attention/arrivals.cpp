#include "arrivals.h"

#include <mutex>
#include <unordered_map>

namespace opfuse {

int arrivals_of(void const* workspace) {
    static std::mutex mutex;
    static std::unordered_map<void const*, int> sets;
    std::lock_guard const lock(mutex);
    if (auto const known = sets.find(workspace); known != sets.end()) return known->second;
    int const next = static_cast<int>(sets.size());
    if (next == kArrivalSets) return -1;
    sets.emplace(workspace, next);
    return next;
}

}  // namespace opfuse
