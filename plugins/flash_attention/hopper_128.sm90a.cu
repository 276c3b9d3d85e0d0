#include "hopper.cuh"

namespace opfuse {

template <>
cudaError_t hopper_attention<128>(Attention const& a, __half, cudaStream_t stream) {
    return launch_hopper<__half, 128>(a, stream);
}

template <>
cudaError_t hopper_attention<128>(Attention const& a, __nv_bfloat16, cudaStream_t stream) {
    return launch_hopper<__nv_bfloat16, 128>(a, stream);
}

}  // namespace opfuse
