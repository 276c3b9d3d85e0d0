#include "host.h"

#include <dlfcn.h>

#include <cstring>

namespace contract {
namespace {

int64_t evaluate(nvinfer1::DimensionOperation op, int64_t a, int64_t b) {
    using nvinfer1::DimensionOperation;
    switch (op) {
    case DimensionOperation::kSUM: return a + b;
    case DimensionOperation::kPROD: return a * b;
    case DimensionOperation::kSUB: return a - b;
    case DimensionOperation::kMAX: return a > b ? a : b;
    case DimensionOperation::kMIN: return a < b ? a : b;
    case DimensionOperation::kFLOOR_DIV: return a / b;
    case DimensionOperation::kCEIL_DIV: return (a + b - 1) / b;
    default: throw std::logic_error("the host does not know this dimension operation");
    }
}

char const* sign(nvinfer1::DimensionOperation op) {
    using nvinfer1::DimensionOperation;
    switch (op) {
    case DimensionOperation::kSUM: return " + ";
    case DimensionOperation::kPROD: return " * ";
    case DimensionOperation::kSUB: return " - ";
    case DimensionOperation::kMAX: return " max ";
    case DimensionOperation::kMIN: return " min ";
    case DimensionOperation::kFLOOR_DIV: return " // ";
    default: return " ? ";
    }
}

size_t width(PluginFieldType type) {
    switch (type) {
    case PluginFieldType::kFLOAT32:
    case PluginFieldType::kINT32: return 4;
    case PluginFieldType::kFLOAT64:
    case PluginFieldType::kINT64: return 8;
    case PluginFieldType::kDIMS: return sizeof(nvinfer1::Dims);
    default: return 1;
    }
}

template <class Capability>
Capability& capability(Plugin const& plugin, nvinfer1::PluginCapabilityType type) {
    auto* found = static_cast<Capability*>(plugin->getCapabilityInterface(type));
    if (!found) throw std::runtime_error("a capability is missing");
    return *found;
}

template <class Function>
Function symbol(void* library, char const* name) {
    void* found = dlsym(library, name);
    if (!found) throw std::runtime_error(std::string("the library does not export ") + name);
    return reinterpret_cast<Function>(found);
}

}  // namespace

Expr const* ExprBuilder::parse(std::string const& text) {
    bool const number = text.find_first_not_of("0123456789") == std::string::npos;
    int64_t const value = number ? std::stoll(text) : -1;
    return pool_.emplace_back(std::make_unique<Expr>(text, number, value)).get();
}

nvinfer1::DimsExprs ExprBuilder::parse(std::vector<std::string> const& dims) {
    nvinfer1::DimsExprs out{};
    for (std::string const& dim : dims) out.d[out.nbDims++] = parse(dim);
    return out;
}

nvinfer1::IDimensionExpr const* ExprBuilder::constant(int64_t value) {
    return parse(std::to_string(value));
}

nvinfer1::IDimensionExpr const* ExprBuilder::operation(nvinfer1::DimensionOperation op,
                                                       nvinfer1::IDimensionExpr const& a,
                                                       nvinfer1::IDimensionExpr const& b) {
    if (a.isConstant() && b.isConstant())
        return constant(evaluate(op, a.getConstantValue(), b.getConstantValue()));
    auto const& left = static_cast<Expr const&>(a).text();
    return parse(left + sign(op) + static_cast<Expr const&>(b).text());
}

std::vector<std::string> texts(nvinfer1::DimsExprs const& dims) {
    std::vector<std::string> out;
    for (int i = 0; i < dims.nbDims; ++i)
        out.push_back(static_cast<Expr const*>(dims.d[i])->text());
    return out;
}

Fields::Fields(nvinfer1::PluginFieldCollection const& from) {
    for (int32_t i = 0; i < from.nbFields; ++i) {
        auto const& field = from.fields[i];
        add(field.name, field.type, field.data, field.length);
    }
}

Fields& Fields::add(std::string name, PluginFieldType type, void const* data, int32_t length) {
    names_.push_back(std::move(name));
    bytes_.emplace_back(static_cast<char const*>(data), width(type) * length);
    fields_.emplace_back(names_.back().c_str(), bytes_.back().data(), type, length);
    return *this;
}

nvinfer1::PluginFieldCollection const* Fields::collection() const {
    collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
    return &collection_;
}

std::vector<std::string> Fields::texts() const {
    std::vector<std::string> out;
    for (auto const& field : fields_) {
        std::string value = "?";
        if (field.type == PluginFieldType::kFLOAT32) {
            float number;
            std::memcpy(&number, field.data, sizeof number);
            value = std::to_string(number);
        } else if (field.type == PluginFieldType::kINT64) {
            int64_t number;
            std::memcpy(&number, field.data, sizeof number);
            value = std::to_string(number);
        } else if (field.type == PluginFieldType::kCHAR) {
            value.assign(static_cast<char const*>(field.data), field.length);
        }
        out.push_back(std::string(field.name) + "=" + value);
    }
    return out;
}

Library::Library(char const* path) {
    void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) throw std::runtime_error(dlerror());
    get_creators_ = symbol<decltype(get_creators_)>(library, "getCreators");
    last_error_ = symbol<decltype(last_error_)>(library, "opfuse_last_error");
    // TensorRT calls it first, and some hosts pass no finder.
    symbol<void (*)(void*)>(library, "setLoggerFinder")(nullptr);
}

std::vector<nvinfer1::IPluginCreatorV3One*> Library::creators() const {
    int32_t count = 0;
    auto* const* list = get_creators_(count);
    std::vector<nvinfer1::IPluginCreatorV3One*> out;
    for (int32_t i = 0; i < count; ++i) {
        if (std::strcmp(list[i]->getInterfaceInfo().kind, "PLUGIN CREATOR_V3ONE") != 0)
            throw std::runtime_error("a creator is not a V3 creator");
        out.push_back(static_cast<nvinfer1::IPluginCreatorV3One*>(list[i]));
    }
    return out;
}

nvinfer1::IPluginV3OneCore& core(Plugin const& plugin) {
    return capability<nvinfer1::IPluginV3OneCore>(plugin, nvinfer1::PluginCapabilityType::kCORE);
}
nvinfer1::IPluginV3OneBuild& build(Plugin const& plugin) {
    return capability<nvinfer1::IPluginV3OneBuild>(plugin, nvinfer1::PluginCapabilityType::kBUILD);
}
nvinfer1::IPluginV3OneRuntime& runtime(Plugin const& plugin) {
    return capability<nvinfer1::IPluginV3OneRuntime>(plugin,
                                                     nvinfer1::PluginCapabilityType::kRUNTIME);
}

}  // namespace contract
