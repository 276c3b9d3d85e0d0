#include "prefill.cuh"

namespace opfuse {

template <>
cudaError_t prefill_attention<64>(Attention const& a, __half, cudaStream_t stream) {
    return launch_prefill<__half, 64>(a, stream);
}

template <>
cudaError_t prefill_attention<64>(Attention const& a, __nv_bfloat16, cudaStream_t stream) {
    return launch_prefill<__nv_bfloat16, 64>(a, stream);
}

}  // namespace opfuse
