// Copies with strides, by C structures.
#include <cuda_runtime_api.h>

#include <stdexcept>

#include "../copy/launch.h"
#include "../core/error.h"
#include "../core/infer.h"
#include "opfuse.h"

namespace opfuse {
namespace {

static_assert(kMaxAxes == OPFUSE_MAX_RANK);

void need_multiples(CopiedBox const& box) {
    auto const fits = [&](int64_t bytes) { return bytes % box.unit == 0; };
    bool const apart = fits(reinterpret_cast<intptr_t>(box.source)) &&
                       fits(reinterpret_cast<intptr_t>(box.target));
    need(apart, "an address is no multiple of the unit");
    for (int axis = 0; axis < box.rank; ++axis)
        need(fits(box.source_strides[axis]) && fits(box.target_strides[axis]),
             "a stride is no multiple of the unit");
}

CopiedBox box_from(opfuse_box const& given) {
    need(given.rank >= 0 && given.rank <= kMaxAxes, "a box has a rank outside 0..8");
    int const unit = given.unit;
    need(unit >= 1 && unit <= 16 && (unit & (unit - 1)) == 0, "a unit is 1, 2, 4, 8, or 16 bytes");
    CopiedBox box{given.source, given.target, unit, given.early != 0, given.rank, {}, {}, {}};
    for (int axis = 0; axis < given.rank; ++axis) {
        need(given.sizes[axis] >= 0, "a box has a negative size");
        box.sizes[axis] = given.sizes[axis];
        box.source_strides[axis] = given.source_strides[axis];
        box.target_strides[axis] = given.target_strides[axis];
    }
    need_multiples(box);
    return box;
}

}  // namespace
}  // namespace opfuse

using namespace opfuse;

extern "C" __attribute__((visibility("default"))) int opfuse_copy(opfuse_box const* boxes,
                                                                  int32_t count,
                                                                  opfuse_stream stream) {
    return guarded("copy", -1, [&] {
        need(count >= 0 && (boxes || count == 0), "boxes are missing");
        std::vector<CopiedBox> made;
        for (int32_t i = 0; i < count; ++i) made.push_back(box_from(boxes[i]));
        cudaError_t const status = copy(made, static_cast<cudaStream_t>(stream));
        if (status != cudaSuccess) throw std::runtime_error(cudaGetErrorString(status));
        return 0;
    });
}
