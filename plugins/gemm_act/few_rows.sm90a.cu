#include "few_rows.cuh"

namespace opfuse {

cudaError_t few_rows_gemm(Gemm const& g, __half, cudaStream_t stream) {
    return launch_few_rows<__half>(g, stream);
}

cudaError_t few_rows_gemm(Gemm const& g, __nv_bfloat16, cudaStream_t stream) {
    return launch_few_rows<__nv_bfloat16>(g, stream);
}

}  // namespace opfuse
