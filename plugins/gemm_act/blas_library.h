// The few functions of cuBLASLt that are used, spelt as in cublasLt.h, whose C interface cuBLAS 12
// and 13 share.
#pragma once
#include <cuda_runtime_api.h>
#include <library_types.h>

#include <cstddef>
#include <cstdint>

namespace opfuse {

struct BlasAlgorithm {
    uint64_t data[8];
};
struct BlasChoice {
    BlasAlgorithm algorithm;
    size_t workspace;  // bytes
    int status;
    float waves;
    int reserved[4];
};

struct BlasLibrary {
    int (*create)(void**) = nullptr;
    int (*create_product)(void**, int compute, cudaDataType scale) = nullptr;
    int (*set_product)(void*, int, void const*, size_t) = nullptr;
    int (*create_layout)(void**, cudaDataType, uint64_t rows, uint64_t cols, int64_t ld) = nullptr;
    int (*create_preference)(void**) = nullptr;
    int (*set_preference)(void*, int, void const*, size_t) = nullptr;
    int (*choose)(void*, void*, void*, void*, void*, void*, void*, int, BlasChoice*,
                  int*) = nullptr;
    int (*multiply)(void*, void*, void const*, void const*, void*, void const*, void*, void const*,
                    void const*, void*, void*, void*, BlasAlgorithm const*, void*, size_t,
                    cudaStream_t) = nullptr;

    bool loaded() const { return multiply != nullptr; }
};

// Of cublasLtMatmulDescAttributes_t, cublasLtMatmulPreferenceAttributes_t, cublasLtEpilogue_t, and
// cublasComputeType_t.
namespace blas {
inline constexpr int kTransposeA = 3, kEpilogue = 7, kBiasPointer = 8;
inline constexpr int kMostWorkspace = 1, kAlignmentA = 5, kAlignmentB = 6, kAlignmentC = 7,
                     kAlignmentD = 8;
inline constexpr int kPlain = 1, kRelu = 2, kBias = 4, kGelu = 32;
inline constexpr int kSumsInFloat = 68;
}  // namespace blas

// The library, looked for once a process; never unloaded.
BlasLibrary const& blas_library();

}  // namespace opfuse
