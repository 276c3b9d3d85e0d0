// Which counters in device memory a launch has for itself, so that blocks can find out which of
// them is the last, in one launch and without clearing anything.
#pragma once

namespace opfuse {

// A set has a counter for each key/value head; all are 0 between launches.
inline constexpr int kArrivalSets = 256, kArrivalHeads = 128;

// The set of a workspace, which launches that run at the same time do not share; -1 where all sets
// are another's.
int arrivals_of(void const* workspace);

}  // namespace opfuse
