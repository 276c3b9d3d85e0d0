#include "kernel.cuh"

namespace opfuse {

template cudaError_t rope(float*, float const*, device::Parameter, device::Parameter,
                          RopeShape const&, bool, cudaStream_t);
template cudaError_t rope(__half*, __half const*, device::Parameter, device::Parameter,
                          RopeShape const&, bool, cudaStream_t);
template cudaError_t rope(__nv_bfloat16*, __nv_bfloat16 const*, device::Parameter,
                          device::Parameter, RopeShape const&, bool, cudaStream_t);

}  // namespace opfuse
