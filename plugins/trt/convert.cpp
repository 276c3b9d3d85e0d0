#include "convert.h"

#include <cstdio>

#include "../core/error.h"

namespace opfuse::trt {
namespace {

template <class T>
T value_of(nvinfer1::PluginField const& field) {
    return *static_cast<T const*>(field.data);
}

// A string's length counts its trailing NUL where the ONNX parser made it.
AttributeValue value_from(nvinfer1::PluginField const& field) {
    using nvinfer1::PluginFieldType;
    if (!field.data) return Unusable{"without a value"};
    if (field.type == PluginFieldType::kCHAR)
        return std::string(static_cast<char const*>(field.data),
                           static_cast<size_t>(std::max(field.length, 0)));
    if (field.length != 1) return Unusable{std::to_string(field.length) + " values"};
    switch (field.type) {
    case PluginFieldType::kFLOAT32: return double{value_of<float>(field)};
    case PluginFieldType::kFLOAT64: return value_of<double>(field);
    case PluginFieldType::kINT32: return int64_t{value_of<int32_t>(field)};
    case PluginFieldType::kINT64: return value_of<int64_t>(field);
    default:
        return Unusable{"of TensorRT field type " + std::to_string(static_cast<int>(field.type))};
    }
}

nvinfer1::DimensionOperation operation(DimOp op) {
    using nvinfer1::DimensionOperation;
    switch (op) {
    case DimOp::kSum: return DimensionOperation::kSUM;
    case DimOp::kProd: return DimensionOperation::kPROD;
    case DimOp::kSub: return DimensionOperation::kSUB;
    case DimOp::kMax: return DimensionOperation::kMAX;
    case DimOp::kMin: return DimensionOperation::kMIN;
    case DimOp::kFloorDiv: return DimensionOperation::kFLOOR_DIV;
    case DimOp::kCeilDiv: return DimensionOperation::kCEIL_DIV;
    }
    throw std::invalid_argument("unknown dimension operation");
}

Dim dim_from(nvinfer1::IDimensionExpr const& expr) {
    return {expr.isConstant() ? expr.getConstantValue() : Dim::kSymbolic, &expr};
}

nvinfer1::IDimensionExpr const& expr_of(Dim dim) {
    return *static_cast<nvinfer1::IDimensionExpr const*>(dim.expr);
}

}  // namespace

DataType type_from(nvinfer1::DataType type) {
    switch (type) {
    case nvinfer1::DataType::kFLOAT: return DataType::kFloat;
    case nvinfer1::DataType::kHALF: return DataType::kFloat16;
    case nvinfer1::DataType::kBF16: return DataType::kBfloat16;
    case nvinfer1::DataType::kINT8: return DataType::kInt8;
    case nvinfer1::DataType::kUINT8: return DataType::kUint8;
    case nvinfer1::DataType::kINT32: return DataType::kInt32;
    case nvinfer1::DataType::kINT64: return DataType::kInt64;
    case nvinfer1::DataType::kBOOL: return DataType::kBool;
    default: return DataType::kUnknown;
    }
}

nvinfer1::DataType type_to(DataType type) {
    switch (type) {
    case DataType::kFloat: return nvinfer1::DataType::kFLOAT;
    case DataType::kFloat16: return nvinfer1::DataType::kHALF;
    case DataType::kBfloat16: return nvinfer1::DataType::kBF16;
    case DataType::kInt8: return nvinfer1::DataType::kINT8;
    case DataType::kUint8: return nvinfer1::DataType::kUINT8;
    case DataType::kInt32: return nvinfer1::DataType::kINT32;
    case DataType::kInt64: return nvinfer1::DataType::kINT64;
    case DataType::kBool: return nvinfer1::DataType::kBOOL;
    case DataType::kUnknown: break;
    }
    throw std::invalid_argument("an output has no known type");
}

Shape shape_from(nvinfer1::DimsExprs const& dims) {
    Shape shape;
    if (dims.nbDims < 0 || dims.nbDims > kMaxRank) throw std::invalid_argument("unknown rank");
    shape.rank = dims.nbDims;
    for (int i = 0; i < shape.rank; ++i) shape.dims[i] = dim_from(*dims.d[i]);
    return shape;
}

nvinfer1::DimsExprs shape_to(Shape const& shape, nvinfer1::IExprBuilder& builder) {
    nvinfer1::DimsExprs dims{};
    dims.nbDims = shape.rank;
    for (int i = 0; i < shape.rank; ++i) {
        Dim const dim = shape.dims[i];
        dims.d[i] = dim.expr ? &expr_of(dim) : builder.constant(dim.value);
    }
    return dims;
}

Tensor tensor_from(nvinfer1::DataType type, nvinfer1::Dims const& dims, void* data) {
    if (dims.nbDims < 0 || dims.nbDims > kMaxRank) throw std::invalid_argument("unknown rank");
    Tensor tensor{data, type_from(type), dims.nbDims, {}};
    for (int i = 0; i < dims.nbDims; ++i) tensor.dims[i] = dims.d[i];
    return tensor;
}

Attribute attribute_from(nvinfer1::PluginField const& field) {
    return {field.name ? field.name : "", value_from(field)};
}

nvinfer1::PluginField field_from(AttributeView const& view) {
    using nvinfer1::PluginFieldType;
    auto const type = view.info.type == AttributeType::kFloat ? PluginFieldType::kFLOAT32
                      : view.info.type == AttributeType::kInt ? PluginFieldType::kINT64
                                                              : PluginFieldType::kCHAR;
    return {view.info.name, view.data, type, static_cast<int32_t>(view.count)};
}

void print_last_error() noexcept { std::fprintf(stderr, "[opfuse] %s\n", last_error()); }

Dim ExprMath::constant(int64_t value) { return dim_from(*builder_->constant(value)); }

Dim ExprMath::apply(DimOp op, Dim a, Dim b) {
    auto const* expr = builder_->operation(operation(op), expr_of(a), expr_of(b));
    if (!expr) throw std::runtime_error("TensorRT refused a dimension expression");
    return dim_from(*expr);
}

}  // namespace opfuse::trt
