// What an op sees of the world: element types, shapes, tensors, one call.  No TensorRT here.
#pragma once
#include <cuda_runtime_api.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace opfuse {

// Numbered as ONNX TensorProto.DataType, which is also what the C ABI speaks.
enum class DataType : int32_t {
    kUnknown = 0,
    kFloat = 1,
    kUint8 = 2,
    kInt8 = 3,
    kInt32 = 6,
    kInt64 = 7,
    kBool = 9,
    kFloat16 = 10,
    kBfloat16 = 16,
};

inline constexpr int kMaxRank = 8;  // nvinfer1::Dims::MAX_DIMS

// One dimension of a shape: a number, or an expression that only its DimMath understands.
struct Dim {
    static constexpr int64_t kSymbolic = -1;
    int64_t value = kSymbolic;
    void const* expr = nullptr;

    bool known() const { return value >= 0; }
};

struct Shape {
    int rank = 0;
    std::array<Dim, kMaxRank> dims{};

    std::span<Dim const> span() const { return {dims.data(), static_cast<size_t>(rank)}; }
};

enum class DimOp { kSum, kProd, kSub, kMax, kMin, kFloorDiv, kCeilDiv };

// Arithmetic over dimensions, so that one shape function serves numbers and TensorRT's expressions.
class DimMath {
  public:
    virtual ~DimMath() = default;
    virtual Dim constant(int64_t value) = 0;
    virtual Dim apply(DimOp op, Dim a, Dim b) = 0;
};

struct Tensor {
    void* data = nullptr;
    DataType type = DataType::kUnknown;
    int rank = 0;
    std::array<int64_t, kMaxRank> dims{};

    // The last axis is `cols`; all axes before it are folded into `rows`.
    int64_t cols() const { return dims[rank - 1]; }
    int64_t rows() const {
        int64_t product = 1;
        for (int i = 0; i + 1 < rank; ++i) product *= dims[i];
        return product;
    }
    int64_t elements() const {
        int64_t product = 1;
        for (int i = 0; i < rank; ++i) product *= dims[i];
        return product;
    }
};

struct Call {
    std::span<Tensor const> inputs;
    std::span<Tensor const> outputs;
    void* workspace;
    cudaStream_t stream;
    bool alone = false;  // TensorRT is building: no other rank is there to be waited for
};

}  // namespace opfuse
