#include "hopper_middle.cuh"

namespace opfuse {
namespace {

constexpr MiddleCosts kCosts{{{64, 64, 2, .71f, 1.34f, .59f, 1.28f, 1.95f},
                              {64, 64, 3, .81f, 1.94f, .46f, 1.24f},
                              {128, 128, 1, 2.09f, 3.2f, 1.43f, 1.43f},
                              {192, 80, 1, 2.8f, 4.22f, 1.27f, 1.27f}},
                             {{64, 64, 2, .73f, 1.18f, .6f, 1.f, 7.66f},
                              {64, 64, 3, .15f, 1.57f, .43f, 1.88f, 5.48f},
                              {128, 128, 1, 6.74f, 3.2f, 1.29f, .11f}}};

}  // namespace

template <>
cudaError_t hopper_attention<128>(Attention const& a, __half, void* workspace,
                                  cudaStream_t stream) {
    return launch_middle<__half, 128>(a, kCosts, workspace, stream);
}

template <>
cudaError_t hopper_attention<128>(Attention const& a, __nv_bfloat16, void* workspace,
                                  cudaStream_t stream) {
    return launch_middle<__nv_bfloat16, 128>(a, kCosts, workspace, stream);
}

}  // namespace opfuse
