#include "kernel.cuh"

namespace opfuse {

template cudaError_t add_rms_norm(float*, float*, float const*, float const*, device::Parameter,
                                  int64_t, int64_t, float, bool, cudaStream_t);
template cudaError_t add_rms_norm(__half*, __half*, __half const*, __half const*, device::Parameter,
                                  int64_t, int64_t, float, bool, cudaStream_t);
template cudaError_t add_rms_norm(__nv_bfloat16*, __nv_bfloat16*, __nv_bfloat16 const*,
                                  __nv_bfloat16 const*, device::Parameter, int64_t, int64_t, float,
                                  bool, cudaStream_t);

}  // namespace opfuse
