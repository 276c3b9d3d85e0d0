#include "decode.cuh"

namespace opfuse {

template <>
cudaError_t decode_attention<256>(Attention const& a, __half, void* workspace,
                                  cudaStream_t stream) {
    return launch_decode<__half, 256>(a, workspace, stream);
}

template <>
cudaError_t decode_attention<256>(Attention const& a, __nv_bfloat16, void* workspace,
                                  cudaStream_t stream) {
    return launch_decode<__nv_bfloat16, 256>(a, workspace, stream);
}

}  // namespace opfuse
