// The only file that spells IPluginV3: Plugin is every op, Creator makes one kind of op.
#pragma once
#include <NvInfer.h>

#include <algorithm>
#include <vector>

#include "../core/error.h"
#include "../core/infer.h"
#include "../core/op.h"
#include "convert.h"

namespace opfuse::trt {

inline constexpr char const* kNamespace = "opfuse";

// `body()`, or `failure` where it throws, with the message on stderr.  Not through ILogger: its
// virtual functions moved in TensorRT 11, and one library serves hosts of both majors.
template <class Result, class Body>
Result reported(char const* op, Result failure, Body&& body) noexcept {
    bool done = false;
    Result const result = guarded(op, failure, [&] {
        Result value = body();
        done = true;
        return value;
    });
    if (!done) print_last_error();
    return result;
}

class Plugin final : public nvinfer1::IPluginV3,
                     public nvinfer1::IPluginV3OneCore,
                     public nvinfer1::IPluginV3OneBuild,
                     public nvinfer1::IPluginV3OneRuntime {
  public:
    Plugin(std::unique_ptr<Op> op, bool building) : op_(std::move(op)), building_(building) {}

    // ---- IPluginV3
    nvinfer1::IPluginCapability* getCapabilityInterface(
        nvinfer1::PluginCapabilityType type) noexcept override {
        switch (type) {
        case nvinfer1::PluginCapabilityType::kCORE: return static_cast<IPluginV3OneCore*>(this);
        case nvinfer1::PluginCapabilityType::kBUILD: return static_cast<IPluginV3OneBuild*>(this);
        case nvinfer1::PluginCapabilityType::kRUNTIME:
            return static_cast<IPluginV3OneRuntime*>(this);
        }
        return nullptr;
    }
    nvinfer1::IPluginV3* clone() noexcept override {
        return reported(
            name(), static_cast<nvinfer1::IPluginV3*>(nullptr),
            [&]() -> nvinfer1::IPluginV3* { return new Plugin(op_->clone(), building_); });
    }

    // ---- IPluginV3OneCore
    char const* getPluginName() const noexcept override { return name(); }
    char const* getPluginVersion() const noexcept override { return op_->traits().version; }
    char const* getPluginNamespace() const noexcept override { return kNamespace; }

    // ---- IPluginV3OneBuild
    int32_t getNbOutputs() const noexcept override { return op_->traits().outputs; }
    int32_t configurePlugin(nvinfer1::DynamicPluginTensorDesc const* in, int32_t inputs,
                            nvinfer1::DynamicPluginTensorDesc const*,
                            int32_t outputs) noexcept override {
        if (!op_->takes(inputs, outputs)) return -1;
        return reported(name(), -1, [&] {
            std::vector<Tensor> tensors, largest;
            for (int32_t i = 0; i < inputs; ++i) {
                tensors.push_back(tensor_from(in[i].desc.type, in[i].opt, nullptr));
                largest.push_back(tensor_from(in[i].desc.type, in[i].max, nullptr));
            }
            tactics_ = op_->tactics(tensors);
            std::erase_if(tactics_, [&](int32_t tactic) { return !has_room(tactic, largest); });
            return 0;
        });
    }
    bool supportsFormatCombination(int32_t at, nvinfer1::DynamicPluginTensorDesc const* tensors,
                                   int32_t inputs, int32_t outputs) noexcept override {
        return reported(name(), false, [&] {
            if (at < 0 || at >= inputs + outputs) return false;
            std::vector<DataType> types(inputs + outputs, DataType::kUnknown);
            for (int32_t i = 0; i <= at; ++i) {
                if (tensors[i].desc.format != nvinfer1::TensorFormat::kLINEAR) return false;
                types[i] = type_from(tensors[i].desc.type);
            }
            return op_->supports(at, types, inputs);
        });
    }
    int32_t getOutputDataTypes(nvinfer1::DataType* out, int32_t outputs,
                               nvinfer1::DataType const* in,
                               int32_t inputs) const noexcept override {
        return reported(name(), -1, [&] {
            need_arity(inputs, outputs);
            std::vector<DataType> from(inputs), to(outputs);
            for (int32_t i = 0; i < inputs; ++i) from[i] = type_from(in[i]);
            op_->types(from, to);
            for (int32_t i = 0; i < outputs; ++i) out[i] = type_to(to[i]);
            return 0;
        });
    }
    int32_t getOutputShapes(nvinfer1::DimsExprs const* in, int32_t inputs,
                            nvinfer1::DimsExprs const*, int32_t, nvinfer1::DimsExprs* out,
                            int32_t outputs, nvinfer1::IExprBuilder& builder) noexcept override {
        return reported(name(), -1, [&] {
            need_arity(inputs, outputs);
            std::vector<Shape> from, to(outputs);
            for (int32_t i = 0; i < inputs; ++i) from.push_back(shape_from(in[i]));
            ExprMath math(builder);
            op_->shapes(from, to, math);
            for (int32_t i = 0; i < outputs; ++i) out[i] = shape_to(to[i], builder);
            return 0;
        });
    }
    size_t getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const* in, int32_t inputs,
                            nvinfer1::DynamicPluginTensorDesc const*,
                            int32_t) const noexcept override {
        return reported(name(), size_t{0}, [&] {
            std::vector<Tensor> tensors;
            for (int32_t i = 0; i < inputs; ++i)
                tensors.push_back(tensor_from(in[i].desc.type, in[i].max, nullptr));
            return op_->workspace(tensors);
        });
    }

    // TensorRT times each of them beside 0, which it need not be told of.
    int32_t getNbTactics() noexcept override { return static_cast<int32_t>(tactics_.size()); }
    int32_t getValidTactics(int32_t* tactics, int32_t count) noexcept override {
        if (count != getNbTactics()) return -1;
        std::copy(tactics_.begin(), tactics_.end(), tactics);
        return 0;
    }

    // ---- IPluginV3OneRuntime
    int32_t setTactic(int32_t tactic) noexcept override {
        if (tactic != 0) op_->set_tactic(tactic);  // 0: what the attribute says
        return 0;
    }
    // Sizes that were symbols when the engine was built are numbers now: what contradicts the op is
    // refused before a kernel reads past the end of a tensor.
    int32_t onShapeChange(nvinfer1::PluginTensorDesc const* in_desc, int32_t inputs,
                          nvinfer1::PluginTensorDesc const* out_desc,
                          int32_t outputs) noexcept override {
        inputs_ = inputs;
        outputs_ = outputs;
        return reported(name(), -1, [&] {
            need_arity(inputs, outputs);
            need_layout(*op_, tensors_from(in_desc, inputs), tensors_from(out_desc, outputs));
            return 0;
        });
    }
    int32_t enqueue(nvinfer1::PluginTensorDesc const* in_desc,
                    nvinfer1::PluginTensorDesc const* out_desc, void const* const* in,
                    void* const* out, void* workspace, cudaStream_t stream) noexcept override {
        return reported(name(), -1, [&] {
            need_arity(inputs_, outputs_);
            TensorList const inputs(in_desc, in, inputs_);
            TensorList const outputs(out_desc, out, outputs_);
            cudaError_t const status =
                op_->run({inputs.span(), outputs.span(), workspace, stream, building_});
            if (status != cudaSuccess) throw std::runtime_error(cudaGetErrorString(status));
            return 0;
        });
    }
    nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext*) noexcept override {
        return clone();
    }
    // Listed anew at each call: the pointers aim into op_, never into the op this was cloned from.
    nvinfer1::PluginFieldCollection const* getFieldsToSerialize() noexcept override {
        return reported(name(), static_cast<nvinfer1::PluginFieldCollection const*>(nullptr),
                        [&]() -> nvinfer1::PluginFieldCollection const* {
                            fields_.clear();
                            for (AttributeView const& view : op_->attributes())
                                fields_.push_back(field_from(view));
                            collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
                            return &collection_;
                        });
    }

  private:
    static std::vector<Tensor> tensors_from(nvinfer1::PluginTensorDesc const* descs,
                                            int32_t count) {
        std::vector<Tensor> tensors;
        for (int32_t i = 0; i < count; ++i)
            tensors.push_back(tensor_from(descs[i].type, descs[i].dims, nullptr));
        return tensors;
    }
    // TensorRT asks for scratch memory once, as for the op's own choice: a tactic that needs more
    // is taken where the attribute says so.
    bool has_room(int32_t tactic, std::vector<Tensor> const& largest) const {
        auto const other = op_->clone();
        other->set_tactic(tactic);
        return other->workspace(largest) <= op_->workspace(largest);
    }
    char const* name() const noexcept { return op_->traits().name; }
    void need_arity(int32_t inputs, int32_t outputs) const {
        if (!op_->takes(inputs, outputs))
            throw std::invalid_argument(std::to_string(inputs) + " inputs and " +
                                        std::to_string(outputs) + " outputs, not its arity");
    }

    std::unique_ptr<Op> op_;
    bool building_;
    std::vector<int32_t> tactics_;      // of the shapes that configurePlugin was told
    int32_t inputs_ = 0, outputs_ = 0;  // enqueue is not told how many; onShapeChange comes first
    std::vector<nvinfer1::PluginField> fields_;
    nvinfer1::PluginFieldCollection collection_{};
};

class Creator final : public nvinfer1::IPluginCreatorV3One {
  public:
    explicit Creator(OpKind const& kind) : kind_(&kind) {
        for (AttributeInfo const& info : kind.attributes())
            fields_.push_back(field_from({info, nullptr, 1}));
        collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
    }
    Creator(Creator const&) = delete;

    char const* getPluginName() const noexcept override { return kind_->traits().name; }
    char const* getPluginVersion() const noexcept override { return kind_->traits().version; }
    char const* getPluginNamespace() const noexcept override { return kNamespace; }
    nvinfer1::PluginFieldCollection const* getFieldNames() noexcept override {
        return &collection_;
    }
    nvinfer1::IPluginV3* createPlugin(char const*, nvinfer1::PluginFieldCollection const* given,
                                      nvinfer1::TensorRTPhase phase) noexcept override {
        return reported(kind_->traits().name, static_cast<nvinfer1::IPluginV3*>(nullptr),
                        [&]() -> nvinfer1::IPluginV3* {
                            std::vector<Attribute> attributes;
                            for (int32_t i = 0; given && i < given->nbFields; ++i)
                                attributes.push_back(attribute_from(given->fields[i]));
                            return new Plugin(kind_->create(attributes),
                                              phase == nvinfer1::TensorRTPhase::kBUILD);
                        });
    }

  private:
    OpKind const* kind_;
    std::vector<nvinfer1::PluginField> fields_;
    nvinfer1::PluginFieldCollection collection_{};
};

// One creator an op, alive as long as the library.
std::vector<nvinfer1::IPluginCreatorInterface*> const& creators();

}  // namespace opfuse::trt
