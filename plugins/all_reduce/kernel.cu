#include "kernel.cuh"

namespace opfuse {

template cudaError_t reduce_alone(Reduction<float> const&, cudaStream_t);
template cudaError_t reduce_alone(Reduction<__half> const&, cudaStream_t);
template cudaError_t reduce_alone(Reduction<__nv_bfloat16> const&, cudaStream_t);

template cudaError_t reduce_one_shot(Reduction<float> const&, device::Peers const&, cudaStream_t);
template cudaError_t reduce_one_shot(Reduction<__half> const&, device::Peers const&, cudaStream_t);
template cudaError_t reduce_one_shot(Reduction<__nv_bfloat16> const&, device::Peers const&,
                                     cudaStream_t);

template cudaError_t reduce_two_shot(Reduction<float> const&, device::Peers const&, cudaStream_t);
template cudaError_t reduce_two_shot(Reduction<__half> const&, device::Peers const&, cudaStream_t);
template cudaError_t reduce_two_shot(Reduction<__nv_bfloat16> const&, device::Peers const&,
                                     cudaStream_t);

template cudaError_t gather(uint16_t*, uint16_t const*, int64_t, int64_t, device::Peers const&,
                            cudaStream_t);
template cudaError_t gather(uint32_t*, uint32_t const*, int64_t, int64_t, device::Peers const&,
                            cudaStream_t);

}  // namespace opfuse
