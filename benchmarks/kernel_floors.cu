// What no kernel of these ops does without.  Launched as ours are, it loads all inputs, stores all
// outputs, and, where asked, waits for the sum over each row in between.  `benchmarks.kernels`
// compiles and times it.
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>

#include "../plugins/device/launch.cuh"

using namespace opfuse::device;

struct Tensors {
    uint4 const* inputs[2];   // [rows, cols] of fp16, as all of them
    uint4 const* weights[2];  // [cols]
    uint4* outputs[2];
};

__device__ float squares(uint4 const& item) {
    __half2 pairs[4];
    memcpy(pairs, &item, sizeof(pairs));
    float sum = 0.f;
#pragma unroll
    for (__half2 const pair : pairs) {
        float2 const both = __half22float2(pair);
        sum += both.x * both.x + both.y * both.y;
    }
    return sum;
}

// Over kWarps warps; 0 where it is a number at all: what is added to the outputs.
template <int kWarps>
__device__ unsigned nothing_of_sum(float value) {
    for (int offset = 16; offset > 0; offset /= 2)
        value += __shfl_xor_sync(0xffffffffu, value, offset);
    __shared__ __align__(16) float partial[kWarps];
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
    __syncthreads();
    value = 0.f;
#pragma unroll
    for (int i = 0; i < kWarps; ++i) value += partial[i];
    return value < 0.f;
}

// A block of kWarps warps has kItems vectors a thread: a row where there is a sum.
template <int kInputs, int kOutputs, int kWeights, int kWarps, int kItems, bool kSum>
__global__ void __launch_bounds__(kWarps * 32) floor_kernel(Tensors of) {
    constexpr int kStep = kWarps * 32, kVectors = kStep * kItems;
    let_next_start();
    int64_t const first = int64_t{blockIdx.x} * kVectors + threadIdx.x;
    if (threadIdx.x % 2 == 0)  // L2 fetches 32 bytes
        for (int i = 0; i < kItems; ++i)
            for (int k = 0; k < kInputs; ++k) prefetch(of.inputs[k] + first + i * kStep);
    wait_for_previous();
    uint4 items[kInputs][kItems], weights[2][kItems]{};
#pragma unroll
    for (int i = 0; i < kItems; ++i)
#pragma unroll
        for (int k = 0; k < kInputs; ++k) items[k][i] = of.inputs[k][first + i * kStep];
#pragma unroll
    for (int i = 0; i < kItems; ++i)
#pragma unroll
        for (int k = 0; k < kWeights; ++k) weights[k][i] = of.weights[k][threadIdx.x + i * kStep];
    unsigned changed = 0;
    if constexpr (kSum) {
        float sum = 0.f;
#pragma unroll
        for (int i = 0; i < kItems; ++i) sum += squares(items[0][i]);
        changed = nothing_of_sum<kWarps>(sum);
    }
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
        if (kInputs == 2 && kOutputs == 1) items[0][i].x ^= items[1][i].x & 1;  // both are needed
        for (int k = 0; k < kWeights; ++k) changed |= weights[k][i].x == 0xffffffffu;
        items[0][i].x += changed;
#pragma unroll
        for (int k = 0; k < kOutputs; ++k)
            of.outputs[k][first + i * kStep] = items[k < kInputs ? k : 0][i];
    }
}

__global__ void empty_kernel() {}

template <int kInputs, int kOutputs, int kWeights, int kWarps, bool kSum>
int launch_floor(Tensors const& of, int64_t rows, int64_t cols, cudaStream_t stream) {
    Machine machine;
    if (cudaError_t const status = current_machine(machine); status != cudaSuccess) return status;
    auto const with_items = [&]<int kItems>() {
        int64_t const blocks = rows * cols / (kWarps * 256 * kItems);
        Grid const grid{.blocks = blocks, .threads = dim3(kWarps * 32), .most_share = 8};
        return launch(floor_kernel<kInputs, kOutputs, kWeights, kWarps, kItems, kSum>, machine,
                      grid, stream, of);
    };
    if constexpr (!kSum) return with_items.template operator()<1>();
    switch (cols / (kWarps * 256)) {
    case 1: return with_items.template operator()<1>();
    case 2: return with_items.template operator()<2>();
    case 4: return with_items.template operator()<4>();
    default: return cudaErrorInvalidValue;
    }
}

template <int kInputs, int kOutputs, int kWeights, bool kSum>
int launch_floor(Tensors const& of, int64_t rows, int64_t cols, int warps, cudaStream_t stream) {
    switch (warps) {
    case 4: return launch_floor<kInputs, kOutputs, kWeights, 4, kSum>(of, rows, cols, stream);
    case 8: return launch_floor<kInputs, kOutputs, kWeights, 8, kSum>(of, rows, cols, stream);
    case 16: return launch_floor<kInputs, kOutputs, kWeights, 16, kSum>(of, rows, cols, stream);
    default: return cudaErrorInvalidValue;
    }
}

// `op`: what it loads and stores as much as.  A cudaError_t.
extern "C" int opfuse_floor(char const* op, int sum, Tensors const* of, int64_t rows, int64_t cols,
                            int warps, cudaStream_t stream) {
    auto const is = [&](char const* name) { return std::strcmp(op, name) == 0; };
    auto const run = [&]<int kInputs, int kOutputs, int kWeights>() {
        return sum ? launch_floor<kInputs, kOutputs, kWeights, true>(*of, rows, cols, warps, stream)
                   : launch_floor<kInputs, kOutputs, 0, false>(*of, rows, cols, warps, stream);
    };
    if (is("RmsNorm")) return run.template operator()<1, 1, 1>();
    if (is("AddRmsNorm")) return run.template operator()<2, 2, 1>();
    if (is("AddLayerNorm")) return run.template operator()<2, 2, 2>();
    if (is("GatedAct")) return run.template operator()<2, 1, 0>();
    if (is("nothing")) {
        empty_kernel<<<1, 128, 0, stream>>>();
        return cudaGetLastError();
    }
    return cudaErrorInvalidValue;
}
