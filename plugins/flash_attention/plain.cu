#include "plain.cuh"

namespace opfuse {

template cudaError_t plain_attention<float>(Attention const&, cudaStream_t);
template cudaError_t plain_attention<__half>(Attention const&, cudaStream_t);
template cudaError_t plain_attention<__nv_bfloat16>(Attention const&, cudaStream_t);

}  // namespace opfuse
