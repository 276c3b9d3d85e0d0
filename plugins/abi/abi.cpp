#include <algorithm>
#include <string>
#include <vector>

#include "../core/error.h"
#include "../core/infer.h"
#include "../core/op.h"
#include "opfuse.h"

struct opfuse_op {
    std::unique_ptr<opfuse::Op> op;
};

namespace opfuse {
namespace {

constexpr char const* kLibrary = "opfuse";

OpKind const& kind_at(int32_t index) {
    need(index >= 0 && static_cast<size_t>(index) < op_kinds().size(), "no op of this index");
    return *op_kinds()[index];
}

Attribute attribute_from(opfuse_attribute const& given) {
    need(given.name && given.data && given.count >= 0, "attribute without name or data");
    switch (static_cast<AttributeType>(given.type)) {
    case AttributeType::kFloat: return {given.name, double{*static_cast<float const*>(given.data)}};
    case AttributeType::kInt: return {given.name, *static_cast<int64_t const*>(given.data)};
    case AttributeType::kString:
        return {given.name, std::string(static_cast<char const*>(given.data), given.count)};
    }
    return {given.name, Unusable{"of unknown type " + std::to_string(given.type)}};
}

Tensor tensor_from(opfuse_tensor const& given) {
    need(given.rank >= 0 && given.rank <= kMaxRank, "a tensor has a rank outside 0..8");
    Tensor tensor{given.data, static_cast<DataType>(given.type), given.rank, {}};
    for (int i = 0; i < given.rank; ++i) {
        need(given.dims[i] >= 0, "a tensor has a negative dimension");
        tensor.dims[i] = given.dims[i];
    }
    return tensor;
}

std::vector<Tensor> tensors_from(opfuse_tensor const* given, int32_t count) {
    need(count >= 0 && (given || count == 0), "tensors are missing");
    std::vector<Tensor> tensors;
    for (int32_t i = 0; i < count; ++i) tensors.push_back(tensor_from(given[i]));
    return tensors;
}

void enqueue(Op const& op, Call const& call, std::vector<Tensor> const& inputs) {
    need_layout(op, inputs, call.outputs);
    cudaError_t const status = op.run(call);
    if (status != cudaSuccess) throw std::runtime_error(cudaGetErrorString(status));
}

}  // namespace
}  // namespace opfuse

#define OPFUSE_EXPORT extern "C" __attribute__((visibility("default")))

using namespace opfuse;

OPFUSE_EXPORT int32_t opfuse_abi_version() { return OPFUSE_ABI_VERSION; }
OPFUSE_EXPORT char const* opfuse_version() { return OPFUSE_VERSION; }
OPFUSE_EXPORT char const* opfuse_architectures() { return OPFUSE_ARCHITECTURES; }
OPFUSE_EXPORT char const* opfuse_last_error() { return last_error(); }
OPFUSE_EXPORT int32_t opfuse_op_count() { return static_cast<int32_t>(op_kinds().size()); }

OPFUSE_EXPORT int opfuse_describe_op(int32_t index, opfuse_op_info* info) {
    return guarded(kLibrary, -1, [&] {
        OpKind const& kind = kind_at(index);
        OpTraits const& t = kind.traits();
        *info = {t.name,       t.version, t.min_inputs,
                 t.max_inputs, t.outputs, static_cast<int32_t>(kind.attributes().size())};
        return 0;
    });
}

OPFUSE_EXPORT int opfuse_describe_attribute(int32_t index, int32_t attribute,
                                            opfuse_attribute* info) {
    return guarded(kLibrary, -1, [&] {
        auto const attributes = kind_at(index).attributes();
        need(attribute >= 0 && static_cast<size_t>(attribute) < attributes.size(),
             "no attribute of this index");
        *info = {attributes[attribute].name, static_cast<int32_t>(attributes[attribute].type), 0,
                 nullptr};
        return 0;
    });
}

OPFUSE_EXPORT opfuse_op* opfuse_create(char const* name, opfuse_attribute const* attributes,
                                       int32_t count) {
    char const* who = name ? name : kLibrary;
    return guarded(who, static_cast<opfuse_op*>(nullptr), [&] {
        OpKind const* kind = find_op_kind(who);
        need(kind, "no op of this name");
        need(count >= 0 && (attributes || count == 0), "attributes are missing");
        std::vector<Attribute> given;
        for (int32_t i = 0; i < count; ++i) given.push_back(attribute_from(attributes[i]));
        return new opfuse_op{kind->create(given)};
    });
}

OPFUSE_EXPORT void opfuse_destroy(opfuse_op* op) { delete op; }

OPFUSE_EXPORT int opfuse_supports(opfuse_op const* op, int32_t at, int32_t const* types,
                                  int32_t inputs, int32_t outputs) {
    return guarded(op->op->traits().name, 0, [&] {
        if (at < 0 || inputs < 0 || outputs < 0) return 0;
        std::vector<DataType> all;
        for (int32_t i = 0; i < inputs + outputs; ++i)
            all.push_back(static_cast<DataType>(types[i]));
        return op->op->supports(at, all, inputs) ? 1 : 0;
    });
}

OPFUSE_EXPORT int opfuse_infer(opfuse_op const* op, opfuse_tensor const* inputs,
                               int32_t input_count, opfuse_tensor* outputs, int32_t output_count) {
    return guarded(op->op->traits().name, -1, [&] {
        need(output_count >= 0, "a negative number of outputs");
        auto const out = infer(*op->op, tensors_from(inputs, input_count), output_count);
        for (size_t i = 0; i < out.size(); ++i) {
            outputs[i].type = static_cast<int32_t>(out[i].type);
            outputs[i].rank = out[i].rank;
            std::copy(out[i].dims.begin(), out[i].dims.end(), outputs[i].dims);
        }
        return 0;
    });
}

OPFUSE_EXPORT int64_t opfuse_workspace_size(opfuse_op const* op, opfuse_tensor const* inputs,
                                            int32_t input_count) {
    return guarded(op->op->traits().name, int64_t{-1}, [&] {
        auto const tensors = tensors_from(inputs, input_count);
        infer(*op->op, tensors, op->op->traits().outputs);
        return static_cast<int64_t>(op->op->workspace(tensors));
    });
}

OPFUSE_EXPORT int32_t opfuse_tactics(opfuse_op const* op, opfuse_tensor const* inputs,
                                     int32_t input_count, int32_t* tactics, int32_t capacity) {
    return guarded(op->op->traits().name, int32_t{-1}, [&] {
        auto const tensors = tensors_from(inputs, input_count);
        infer(*op->op, tensors, op->op->traits().outputs);
        auto const found = op->op->tactics(tensors);
        size_t const room = capacity > 0 ? static_cast<size_t>(capacity) : 0;
        std::copy_n(found.begin(), std::min(room, found.size()), tactics);
        return static_cast<int32_t>(found.size());
    });
}

OPFUSE_EXPORT int opfuse_enqueue(opfuse_op const* op, opfuse_tensor const* inputs,
                                 int32_t input_count, opfuse_tensor const* outputs,
                                 int32_t output_count, void* workspace, opfuse_stream stream) {
    return guarded(op->op->traits().name, -1, [&] {
        auto const in = tensors_from(inputs, input_count);
        auto const out = tensors_from(outputs, output_count);
        enqueue(*op->op, {in, out, workspace, static_cast<cudaStream_t>(stream)}, in);
        return 0;
    });
}
