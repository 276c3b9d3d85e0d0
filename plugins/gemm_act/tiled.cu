#include "tiled.cuh"

namespace opfuse {

cudaError_t tiled_gemm(Gemm const& g, __half, cudaStream_t stream) {
    return launch_tiled<__half>(g, stream);
}

cudaError_t tiled_gemm(Gemm const& g, __nv_bfloat16, cudaStream_t stream) {
    return launch_tiled<__nv_bfloat16>(g, stream);
}

}  // namespace opfuse
