// Products by cuBLASLt, where it is: loaded at run time, the library links to none.
#pragma once
#include <cstddef>

#include "launch.h"

namespace opfuse {

// Whether cuBLASLt was found.  The first call looks for it.
bool has_blas();

// Whether an epilogue of cuBLASLt does what the product asks for.
bool has_epilogue_in_blas(Gemm const& gemm, bool has_residual);

// Scratch memory that a product of `rows` by `cols` may use; it works with none.
size_t blas_workspace(int64_t rows, int64_t cols);

// cudaErrorNotSupported where it is not there, has no such product or epilogue, or would have to
// choose how while `stream` is captured, which is done once for a shape.  Launches nothing then.
cudaError_t blas_gemm(Gemm const& gemm, bool is_half, void* workspace, size_t bytes,
                      cudaStream_t stream);

}  // namespace opfuse
