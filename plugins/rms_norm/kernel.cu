#include "kernel.cuh"

namespace opfuse {

template cudaError_t rms_norm(float*, float const*, device::Parameter, int64_t, int64_t, float,
                              cudaStream_t);
template cudaError_t rms_norm(__half*, __half const*, device::Parameter, int64_t, int64_t, float,
                              cudaStream_t);
template cudaError_t rms_norm(__nv_bfloat16*, __nv_bfloat16 const*, device::Parameter, int64_t,
                              int64_t, float, cudaStream_t);

}  // namespace opfuse
