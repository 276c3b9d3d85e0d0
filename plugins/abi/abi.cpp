#include <string>
#include <vector>

#include "../core/error.h"
#include "../core/op.h"
#include "opfuse.h"

struct opfuse_op {
    std::unique_ptr<opfuse::Op> op;
};

namespace opfuse {
namespace {

constexpr char const* kLibrary = "opfuse";

class NumberMath final : public DimMath {
  public:
    Dim constant(int64_t value) override { return {value}; }
    Dim apply(DimOp op, Dim a, Dim b) override { return {evaluate(op, a.value, b.value)}; }

  private:
    static int64_t evaluate(DimOp op, int64_t a, int64_t b) {
        switch (op) {
        case DimOp::kSum: return a + b;
        case DimOp::kProd: return a * b;
        case DimOp::kSub: return a - b;
        case DimOp::kMax: return a > b ? a : b;
        case DimOp::kMin: return a < b ? a : b;
        case DimOp::kFloorDiv: return a / b;
        case DimOp::kCeilDiv: return (a + b - 1) / b;
        }
        throw std::invalid_argument("unknown dimension operation");
    }
};

void need(bool condition, std::string const& what) {
    if (!condition) throw std::invalid_argument(what);
}

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

// Type and shape of each output; throws where an input is not what the op takes.
std::vector<Tensor> infer(Op const& op, std::vector<Tensor> const& inputs, size_t outputs) {
    need(op.takes(inputs.size(), outputs), std::to_string(inputs.size()) + " inputs and " +
                                               std::to_string(outputs) + " outputs, not its arity");
    std::vector<DataType> in_types, out_types(outputs);
    std::vector<Shape> in_shapes, out_shapes(outputs);
    for (Tensor const& tensor : inputs) {
        in_types.push_back(tensor.type);
        need(op.accepts(in_types.size() - 1, in_types),
             "input " + std::to_string(in_types.size() - 1) + " has an unsupported type");
        Shape& shape = in_shapes.emplace_back();
        shape.rank = tensor.rank;
        for (int i = 0; i < tensor.rank; ++i) shape.dims[i] = {tensor.dims[i]};
    }
    NumberMath math;
    op.types(in_types, out_types);
    op.shapes(in_shapes, out_shapes, math);
    std::vector<Tensor> result(outputs);
    for (size_t i = 0; i < outputs; ++i) {
        result[i].type = out_types[i];
        result[i].rank = out_shapes[i].rank;
        for (int k = 0; k < out_shapes[i].rank; ++k)
            result[i].dims[k] = out_shapes[i].dims[k].value;
    }
    return result;
}

void need_same_layout(Tensor const& given, Tensor const& inferred, size_t index) {
    need(given.type == inferred.type && given.rank == inferred.rank && given.dims == inferred.dims,
         "output " + std::to_string(index) + " has another type or shape than the op gives");
}

void enqueue(Op const& op, Call const& call, std::vector<Tensor> const& inputs) {
    auto const inferred = infer(op, inputs, call.outputs.size());
    for (size_t i = 0; i < inferred.size(); ++i) need_same_layout(call.outputs[i], inferred[i], i);
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
