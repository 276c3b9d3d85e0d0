#include "kernel.cuh"

namespace opfuse {

template cudaError_t masked_softmax(float*, float const*, Mask const&, float, bool, int64_t,
                                    int64_t, int64_t, cudaStream_t);
template cudaError_t masked_softmax(__half*, __half const*, Mask const&, float, bool, int64_t,
                                    int64_t, int64_t, cudaStream_t);
template cudaError_t masked_softmax(__nv_bfloat16*, __nv_bfloat16 const*, Mask const&, float, bool,
                                    int64_t, int64_t, int64_t, cudaStream_t);

}  // namespace opfuse
