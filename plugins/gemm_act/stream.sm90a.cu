#include "stream_choice.cuh"

namespace opfuse {

cudaError_t stream_gemm(Gemm const& g, __half, cudaStream_t stream) {
    return choose_stream<__half>(g, stream);
}

cudaError_t stream_gemm(Gemm const& g, __nv_bfloat16, cudaStream_t stream) {
    return choose_stream<__nv_bfloat16>(g, stream);
}

}  // namespace opfuse
