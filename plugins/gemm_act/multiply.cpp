#include "../device/tensor_map.h"
#include "launch.h"

namespace opfuse {
namespace {

#ifdef OPFUSE_HOPPER
// Whether the Hopper kernels suit the product and the device.
bool suits_hopper(Gemm const& g) {
    bool const odd_bias = reinterpret_cast<uintptr_t>(g.bias) % 4 != 0;
    if (!g.in_vectors || !g.y_in_boxes || odd_bias || g.depth == 0) return false;
    return device::is_hopper();
}

template <class T>
cudaError_t hopper(Gemm const& g, cudaStream_t stream) {
    return hopper_gemm(g, T{}, stream);
}
#else
bool suits_hopper(Gemm const&) { return false; }

template <class T>
cudaError_t hopper(Gemm const&, cudaStream_t) {
    return cudaErrorNotSupported;
}
#endif

}  // namespace

template <class T>
cudaError_t multiply(Gemm const& g, cudaStream_t stream) {
    cudaError_t const status = suits_hopper(g) ? hopper<T>(g, stream) : cudaErrorNotSupported;
    return status == cudaErrorNotSupported ? tiled_gemm(g, T{}, stream) : status;
}

template cudaError_t multiply<__half>(Gemm const&, cudaStream_t);
template cudaError_t multiply<__nv_bfloat16>(Gemm const&, cudaStream_t);

}  // namespace opfuse
