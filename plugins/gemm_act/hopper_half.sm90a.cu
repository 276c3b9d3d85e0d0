#include "choose.cuh"

namespace opfuse {

cudaError_t hopper_gemm(Gemm const& g, __half, cudaStream_t stream) {
    return choose_hopper_gemm<__half>(g, stream);
}

}  // namespace opfuse
