// What TensorRT is to a plugin, without TensorRT: dimension expressions, a resource context,
// fields.
#pragma once
#include <NvInfer.h>

#include <deque>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace contract {

using nvinfer1::DataType;
using nvinfer1::PluginFieldType;

// A dimension expression that remembers how it was made, as text.
class Expr final : public nvinfer1::IDimensionExpr, nvinfer1::apiv::VDimensionExpr {
  public:
    Expr(std::string text, bool constant, int64_t value)
        : text_(std::move(text)), constant_(constant), value_(value) {
        nvinfer1::IDimensionExpr::mImpl = this;
    }
    bool isConstant() const override { return constant_; }
    int64_t getConstantValue() const override { return constant_ ? value_ : -1; }
    bool isSizeTensor() const override { return false; }
    std::string const& text() const { return text_; }

  private:
    std::string text_;
    bool constant_;
    int64_t value_;
};

class ExprBuilder final : public nvinfer1::IExprBuilder, nvinfer1::apiv::VExprBuilder {
  public:
    ExprBuilder() { nvinfer1::IExprBuilder::mImpl = this; }
    // A number makes a constant, anything else a symbol.
    Expr const* parse(std::string const& text);
    nvinfer1::DimsExprs parse(std::vector<std::string> const& dims);

    nvinfer1::IDimensionExpr const* constant(int64_t value) override;
    nvinfer1::IDimensionExpr const* operation(nvinfer1::DimensionOperation op,
                                              nvinfer1::IDimensionExpr const& a,
                                              nvinfer1::IDimensionExpr const& b) override;
    nvinfer1::IDimensionExpr const* declareSizeTensor(int32_t, nvinfer1::IDimensionExpr const&,
                                                      nvinfer1::IDimensionExpr const&) override {
        return nullptr;
    }

  private:
    std::deque<std::unique_ptr<Expr>> pool_;
};

std::vector<std::string> texts(nvinfer1::DimsExprs const& dims);

class ResourceContext final : public nvinfer1::IPluginResourceContext {
  public:
    nvinfer1::IGpuAllocator* getGpuAllocator() const noexcept override { return nullptr; }
    nvinfer1::IErrorRecorder* getErrorRecorder() const noexcept override { return nullptr; }
};

// A field collection that owns its bytes, as TensorRT's parser or an engine file does.
class Fields {
  public:
    Fields() = default;
    Fields(Fields const& other) : Fields(*other.collection()) {}
    Fields& operator=(Fields const&) = delete;
    explicit Fields(nvinfer1::PluginFieldCollection const& from);

    Fields& add(std::string name, PluginFieldType type, void const* data, int32_t length);
    Fields& add(std::string name, float value) {
        return add(std::move(name), PluginFieldType::kFLOAT32, &value, 1);
    }
    Fields& add(std::string name, int32_t value) {
        return add(std::move(name), PluginFieldType::kINT32, &value, 1);
    }
    Fields& add(std::string name, std::string const& value) {
        auto const length = static_cast<int32_t>(value.size());
        return add(std::move(name), PluginFieldType::kCHAR, value.data(), length);
    }
    nvinfer1::PluginFieldCollection const* collection() const;
    // "name=value" of each, in order.
    std::vector<std::string> texts() const;

  private:
    std::deque<std::string> names_, bytes_;
    std::vector<nvinfer1::PluginField> fields_;
    mutable nvinfer1::PluginFieldCollection collection_{};
};

// An opened plugin library.
class Library {
  public:
    explicit Library(char const* path);
    std::vector<nvinfer1::IPluginCreatorV3One*> creators() const;
    std::string last_error() const { return last_error_(); }

  private:
    nvinfer1::IPluginCreatorInterface* const* (*get_creators_)(int32_t&);
    char const* (*last_error_)();
};

using Plugin = std::unique_ptr<nvinfer1::IPluginV3>;

nvinfer1::IPluginV3OneCore& core(Plugin const& plugin);
nvinfer1::IPluginV3OneBuild& build(Plugin const& plugin);
nvinfer1::IPluginV3OneRuntime& runtime(Plugin const& plugin);

}  // namespace contract
