#include "infer.h"

#include <stdexcept>

namespace opfuse {
namespace {

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

}  // namespace

void need(bool condition, std::string const& what) {
    if (!condition) throw std::invalid_argument(what);
}

std::vector<Tensor> infer(Op const& op, std::span<Tensor const> inputs, size_t outputs) {
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

void need_layout(Op const& op, std::span<Tensor const> inputs, std::span<Tensor const> outputs) {
    auto const inferred = infer(op, inputs, outputs.size());
    for (size_t i = 0; i < inferred.size(); ++i) {
        Tensor const &given = outputs[i], &own = inferred[i];
        need(given.type == own.type && given.rank == own.rank && given.dims == own.dims,
             "output " + std::to_string(i) + " has another type or shape than the op gives");
    }
}

}  // namespace opfuse
