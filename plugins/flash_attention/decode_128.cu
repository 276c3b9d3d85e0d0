#include "decode.cuh"

namespace opfuse {

template <>
cudaError_t decode_attention<128>(Attention const& a, __half, void* workspace,
                                  cudaStream_t stream) {
    return launch_decode<__half, 128>(a, workspace, stream);
}

template <>
cudaError_t decode_attention<128>(Attention const& a, __nv_bfloat16, void* workspace,
                                  cudaStream_t stream) {
    return launch_decode<__nv_bfloat16, 128>(a, workspace, stream);
}

}  // namespace opfuse
