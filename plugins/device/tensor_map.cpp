#include "tensor_map.h"

namespace opfuse::device {
namespace {

constexpr cuuint32_t kSteps[5] = {1, 1, 1, 1, 1};  // every element, along as many axes as there are

// The driver's own function, which the runtime finds; null where the driver is older than Hopper.
auto encoder() {
    static auto const found = [] {
        void* function = nullptr;
        cudaDriverEntryPointQueryResult result{};
        cudaError_t const status = cudaGetDriverEntryPointByVersion(
            "cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &result);
        bool const usable = status == cudaSuccess && result == cudaDriverEntryPointSuccess;
        return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(usable ? function : nullptr);
    }();
    return found;
}

}  // namespace

bool is_hopper() {
    int device = 0, major = 0;
    return cudaGetDevice(&device) == cudaSuccess &&
           cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) ==
               cudaSuccess &&
           major == 9;
}

bool encode_map(CUtensorMap& out, void const* data, bool is_half, int rank, cuuint64_t const* sizes,
                cuuint64_t const* strides, cuuint32_t const* box, int fetched_bytes) {
    auto const encode = encoder();
    if (!encode) return false;
    auto const type = is_half ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    auto const fetched = fetched_bytes == 128 ? CU_TENSOR_MAP_L2_PROMOTION_L2_128B
                                              : CU_TENSOR_MAP_L2_PROMOTION_L2_256B;
    return encode(&out, type, static_cast<cuuint32_t>(rank), const_cast<void*>(data), sizes,
                  strides, box, kSteps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                  fetched, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

}  // namespace opfuse::device
