#include "hopper_middle.cuh"

namespace opfuse {
namespace {

constexpr MiddleCosts kCosts{{{64, 64, 2, 2.98f, .8f, .65f, 4.57f},
                              {64, 64, 3, 4.97f, .61f, .54f, 2.27f},
                              {128, 128, 1, 2.29f, 4.42f, 1.51f},
                              {192, 80, 1, 3.18f, 3.58f, 1.33f}},
                             {{64, 64, 2, 4.26f, .31f, .79f, 4.03f},
                              {64, 64, 3, 5.3f, .47f, .7f, 2.77f},
                              {128, 128, 1, 3.08f, 5.03f, .98f}}};

}  // namespace

template <>
cudaError_t hopper_attention<128>(Attention const& a, __half, cudaStream_t stream) {
    return launch_middle<__half, 128>(a, kCosts, stream);
}

template <>
cudaError_t hopper_attention<128>(Attention const& a, __nv_bfloat16, cudaStream_t stream) {
    return launch_middle<__nv_bfloat16, 128>(a, kCosts, stream);
}

}  // namespace opfuse
