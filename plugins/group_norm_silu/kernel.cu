#include "kernel.cuh"

namespace opfuse {

template cudaError_t group_norm_silu(float*, float const*, device::Parameter, device::Parameter,
                                     Groups const&, float, void*, cudaStream_t);
template cudaError_t group_norm_silu(__half*, __half const*, device::Parameter, device::Parameter,
                                     Groups const&, float, void*, cudaStream_t);
template cudaError_t group_norm_silu(__nv_bfloat16*, __nv_bfloat16 const*, device::Parameter,
                                     device::Parameter, Groups const&, float, void*, cudaStream_t);

}  // namespace opfuse
