#include "hopper_middle.cuh"

namespace opfuse {
namespace {

constexpr MiddleCosts kCosts{{{64, 64, 2, .88f, 1.46f, .58f, 1.05f, 2.57f},
                              {64, 64, 3, 2.05f, .81f, .61f, 1.02f},
                              {128, 128, 1, 2.92f, 2.43f, 1.45f, 1.45f},
                              {192, 80, 1, 3.33f, 2.83f, 1.12f, 1.12f}},
                             {{64, 64, 2, 1.12f, 1.01f, .6f, 1.06f, 4.93f},
                              {64, 64, 3, 2.7f, .91f, .64f, .97f, 1.6f},
                              {128, 128, 1, 3.44f, 3.04f, 1.23f, 1.26f}}};

}  // namespace

template <>
cudaError_t hopper_attention<80>(Attention const& a, __half, void* workspace, cudaStream_t stream) {
    return launch_middle<__half, 80>(a, kCosts, workspace, stream);
}

template <>
cudaError_t hopper_attention<80>(Attention const& a, __nv_bfloat16, void* workspace,
                                 cudaStream_t stream) {
    return launch_middle<__nv_bfloat16, 80>(a, kCosts, workspace, stream);
}

}  // namespace opfuse
