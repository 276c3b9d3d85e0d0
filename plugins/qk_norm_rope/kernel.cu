#include "kernel.cuh"

namespace opfuse {

template cudaError_t qk_norm_rope(float*, float*, float*, float const*, QkNormRopeParameters const&,
                                  QkNormRopeShape const&, bool, cudaStream_t);
template cudaError_t qk_norm_rope(__half*, __half*, __half*, __half const*,
                                  QkNormRopeParameters const&, QkNormRopeShape const&, bool,
                                  cudaStream_t);
template cudaError_t qk_norm_rope(__nv_bfloat16*, __nv_bfloat16*, __nv_bfloat16*,
                                  __nv_bfloat16 const*, QkNormRopeParameters const&,
                                  QkNormRopeShape const&, bool, cudaStream_t);

}  // namespace opfuse
