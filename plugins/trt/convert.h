// Between TensorRT's types and ours.
#pragma once
#include <NvInfer.h>

#include <vector>

#include "../core/attributes.h"
#include "../core/types.h"

namespace opfuse::trt {

DataType type_from(nvinfer1::DataType type);
nvinfer1::DataType type_to(DataType type);
Shape shape_from(nvinfer1::DimsExprs const& dims);
nvinfer1::DimsExprs shape_to(Shape const& shape, nvinfer1::IExprBuilder& builder);
Tensor tensor_from(nvinfer1::DataType type, nvinfer1::Dims const& dims, void* data);
Attribute attribute_from(nvinfer1::PluginField const& field);
nvinfer1::PluginField field_from(AttributeView const& view);
void print_last_error() noexcept;

// Dimensions as TensorRT's symbolic expressions.
class ExprMath final : public DimMath {
  public:
    explicit ExprMath(nvinfer1::IExprBuilder& builder) : builder_(&builder) {}
    Dim constant(int64_t value) override;
    Dim apply(DimOp op, Dim a, Dim b) override;

  private:
    nvinfer1::IExprBuilder* builder_;
};

// The tensors of one enqueue, on the stack: an enqueue allocates nothing.
class TensorList {
  public:
    template <class Pointer>
    TensorList(nvinfer1::PluginTensorDesc const* desc, Pointer const* data, int32_t count)
        : count_(count) {
        if (count > kCapacity) throw std::invalid_argument("more tensors than any op has");
        for (int32_t i = 0; i < count; ++i)
            tensors_[i] = tensor_from(desc[i].type, desc[i].dims, const_cast<void*>(data[i]));
    }
    std::span<Tensor const> span() const { return {tensors_.data(), static_cast<size_t>(count_)}; }

  private:
    static constexpr int32_t kCapacity = 16;
    std::array<Tensor, kCapacity> tensors_;
    int32_t count_;
};

}  // namespace opfuse::trt
