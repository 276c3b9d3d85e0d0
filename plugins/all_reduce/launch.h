// What kernel.cuh launches, for host code.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

#include "../device/parameter.h"
#include "../device/peers.h"

namespace opfuse {

enum class Norm { kNone, kRms, kLayer };

// total = x of all ranks, in their order, + residual + bias; rounded to T once, it is `sum`, and
// y = norm(sum) * gamma + beta.  Without a norm y is the total, and only x is read.
template <class T>
struct Reduction {
    T const *x = nullptr, *residual = nullptr;  // [rows, cols]
    T *y = nullptr, *sum = nullptr;             // [rows, cols]
    device::Parameter gamma, beta, bias;        // [cols]; the last two may be null
    int64_t rows = 0;
    int64_t cols = 0;
    int64_t count = 0;  // elements in all: the last row may be short where there is no norm
    float epsilon = 0.f;
    Norm norm = Norm::kNone;
};

// T is float, __half, or __nv_bfloat16.  They launch on `stream`, and do not wait.
//
// Of one rank: x is the sum of all already.  It may be `sum` itself.
template <class T>
cudaError_t reduce_alone(Reduction<T> const& reduction, cudaStream_t stream);
// Every rank sends its x to all others.
template <class T>
cudaError_t reduce_one_shot(Reduction<T> const& reduction, device::Peers const& peers,
                            cudaStream_t stream);
// Every rank adds up its share of the rows, and sends the sums to all others.
template <class T>
cudaError_t reduce_two_shot(Reduction<T> const& reduction, device::Peers const& peers,
                            cudaStream_t stream);

// y[i, r, :] = x[i, :] of rank r.  Element has the size of those of x: uint16_t or uint32_t.
template <class Element>
cudaError_t gather(Element* y,        // [outer, ranks, inner]
                   Element const* x,  // [outer, inner]
                   int64_t outer, int64_t inner, device::Peers const& peers, cudaStream_t stream);

}  // namespace opfuse
