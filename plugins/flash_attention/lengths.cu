#include "lengths.cuh"

namespace opfuse {

template cudaError_t find_lengths<__half>(Attention const&, int32_t*, cudaStream_t);
template cudaError_t find_lengths<__nv_bfloat16>(Attention const&, int32_t*, cudaStream_t);

}  // namespace opfuse
