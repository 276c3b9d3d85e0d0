#include "choose.cuh"

namespace opfuse {

cudaError_t hopper_gemm(Gemm const& g, __nv_bfloat16, cudaStream_t stream) {
    return choose_hopper_gemm<__nv_bfloat16>(g, stream);
}

}  // namespace opfuse
