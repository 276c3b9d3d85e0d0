#include "kernel.cuh"

namespace opfuse {

template cudaError_t gated_act(float*, float const*, float const*, int64_t, int64_t, int64_t,
                               Activation, cudaStream_t);
template cudaError_t gated_act(__half*, __half const*, __half const*, int64_t, int64_t, int64_t,
                               Activation, cudaStream_t);
template cudaError_t gated_act(__nv_bfloat16*, __nv_bfloat16 const*, __nv_bfloat16 const*, int64_t,
                               int64_t, int64_t, Activation, cudaStream_t);

}  // namespace opfuse
