#include "hopper_middle.cuh"

namespace opfuse {

template <>
cudaError_t hopper_attention<80>(Attention const& a, __half, cudaStream_t stream) {
    return launch_middle<__half, 80>(a, kMiddleCosts, stream);
}

template <>
cudaError_t hopper_attention<80>(Attention const& a, __nv_bfloat16, cudaStream_t stream) {
    return launch_middle<__nv_bfloat16, 80>(a, kMiddleCosts, stream);
}

}  // namespace opfuse
