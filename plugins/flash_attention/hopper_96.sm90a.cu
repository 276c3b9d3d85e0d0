#include "hopper_middle.cuh"

namespace opfuse {
namespace {

constexpr MiddleCosts kCosts{{{64, 64, 2, .48f, 1.76f, .55f, 1.07f, 2.05f},
                              {64, 64, 3, 2.71f, .97f, .48f, .94f},
                              {128, 128, 1, 2.93f, 3.2f, 1.25f, 1.25f},
                              {192, 80, 1, 3.11f, 2.38f, 1.16f, 1.16f}},
                             {{64, 64, 2, 1.12f, 1.01f, .6f, 1.06f, 4.93f},
                              {64, 64, 3, 2.7f, .91f, .64f, .97f, 1.6f},
                              {128, 128, 1, 3.44f, 3.04f, 1.23f, 1.26f}}};

}  // namespace

template <>
cudaError_t hopper_attention<96>(Attention const& a, __half, void* workspace, cudaStream_t stream) {
    return launch_middle<__half, 96>(a, kCosts, workspace, stream);
}

template <>
cudaError_t hopper_attention<96>(Attention const& a, __nv_bfloat16, void* workspace,
                                 cudaStream_t stream) {
    return launch_middle<__nv_bfloat16, 96>(a, kCosts, workspace, stream);
}

}  // namespace opfuse
