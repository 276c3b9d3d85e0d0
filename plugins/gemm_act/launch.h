// What the kernels of this folder launch, for host code; plugins/gated_gemm uses them too.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "../device/activation.h"

namespace opfuse {

// y = activation(x w + bias) + residual; gated, y = activation(x g + b) * (x u + c), with [g | u]
// the weight and [b | c] the bias.
struct Gemm {
    void* y;               // [rows, cols]
    void const* x;         // [rows, depth]
    void const* weight;    // [depth, cols], or `transposed` [cols, depth]; gated, 2 cols
    void const* bias;      // [cols], gated [2 cols]; or null
    void const* residual;  // [rows, cols], or null; gated, null
    int64_t rows;
    int cols, depth;
    device::Activation activation;
    bool transposed, gated;
    int32_t tactic = 0;       // a Tactic, which is taken where it suits
    bool in_vectors = false;  // rows of x and of weight are whole, aligned 16-byte vectors
    bool y_in_pairs = false;  // two neighbouring elements of y may be stored at once
    bool y_in_boxes = false;  // rows of y and residual are whole, aligned 16-byte vectors
};

// Chooses a kernel and launches it on `stream`; does not wait.  y is not empty.
template <class T>  // __half, __nv_bfloat16
cudaError_t multiply(Gemm const& gemm, cudaStream_t stream);

// The kernels; the unnamed argument is __half or __nv_bfloat16.
cudaError_t tiled_gemm(Gemm const& gemm, __half, cudaStream_t stream);
cudaError_t tiled_gemm(Gemm const& gemm, __nv_bfloat16, cudaStream_t stream);
// Compute capability 9.0, in vectors and boxes.
cudaError_t hopper_gemm(Gemm const& gemm, __half, cudaStream_t stream);
cudaError_t hopper_gemm(Gemm const& gemm, __nv_bfloat16, cudaStream_t stream);
// The same, of up to 64 rows.
cudaError_t stream_gemm(Gemm const& gemm, __half, cudaStream_t stream);
cudaError_t stream_gemm(Gemm const& gemm, __nv_bfloat16, cudaStream_t stream);

}  // namespace opfuse
