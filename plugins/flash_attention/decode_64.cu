#include "decode.cuh"

namespace opfuse {

template <>
cudaError_t decode_attention<64>(Attention const& a, __half, void* workspace, cudaStream_t stream) {
    return launch_decode<__half, 64>(a, workspace, stream);
}

template <>
cudaError_t decode_attention<64>(Attention const& a, __nv_bfloat16, void* workspace,
                                 cudaStream_t stream) {
    return launch_decode<__nv_bfloat16, 64>(a, workspace, stream);
}

}  // namespace opfuse
