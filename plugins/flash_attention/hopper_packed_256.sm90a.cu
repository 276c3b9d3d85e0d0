#include "hopper_packed.cuh"

namespace opfuse {

template <>
cudaError_t hopper_packed<256>(Attention const& a, __half, void* workspace, cudaStream_t stream) {
    return launch_packed<__half, HopperShape<256, 1, 64, 3, 1>>(a, workspace, stream);
}

template <>
cudaError_t hopper_packed<256>(Attention const& a, __nv_bfloat16, void* workspace,
                               cudaStream_t stream) {
    return launch_packed<__nv_bfloat16, HopperShape<256, 1, 64, 3, 1>>(a, workspace, stream);
}

}  // namespace opfuse
