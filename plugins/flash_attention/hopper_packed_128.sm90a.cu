#include "hopper_packed.cuh"

namespace opfuse {

template <>
cudaError_t hopper_packed<128>(Attention const& a, __half, void* workspace, cudaStream_t stream) {
    return launch_packed<__half, HopperShape<128, 1, 64, 5, 2>>(a, workspace, stream);
}

template <>
cudaError_t hopper_packed<128>(Attention const& a, __nv_bfloat16, void* workspace,
                               cudaStream_t stream) {
    return launch_packed<__nv_bfloat16, HopperShape<128, 1, 64, 5, 2>>(a, workspace, stream);
}

}  // namespace opfuse
