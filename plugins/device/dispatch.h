// The only place where a run-time type becomes a compile-time type.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#include "../core/types.h"
#include "parameter.h"

namespace opfuse {

// `launch(std::type_identity<T>{})` with the element type of `type`.
template <class Launch>
cudaError_t with_type(DataType type, Launch launch) {
    switch (type) {
    case DataType::kFloat: return launch(std::type_identity<float>{});
    case DataType::kFloat16: return launch(std::type_identity<__half>{});
    case DataType::kBfloat16: return launch(std::type_identity<__nv_bfloat16>{});
    default: return cudaErrorInvalidValue;
    }
}

template <class T>
T* data(Tensor const& tensor) {
    return static_cast<T*>(tensor.data);
}

inline device::Parameter parameter(Tensor const& tensor) {
    return {tensor.data, tensor.type == DataType::kFloat};
}

}  // namespace opfuse
