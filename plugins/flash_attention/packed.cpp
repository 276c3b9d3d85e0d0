#include "../device/dispatch.h"
#include "attributes.h"

namespace opfuse {

struct PackedAttention : AttentionAttributes {
    // qkv, mask?, slopes?, lengths? -> y; see fusions/packed_attention.py
    static constexpr OpTraits kTraits{"PackedAttention", "1", 1, 4, 1};

    static auto fields() { return common_fields<PackedAttention>(); }
    void check() const { AttentionAttributes::check(); }

    bool accepts(size_t input, std::span<DataType const> types) const {
        return input == 0 ? is_floating(types[0]) : accepts_optional(input, types, 1);
    }
    void types(std::span<DataType const> in, std::span<DataType> out) const {
        out[0] = result_type(in);
    }
    void shapes(std::span<Shape const> in, std::span<Shape> out, DimMath& math) const {
        Shape const& qkv = in[0];
        need(qkv.rank == 3 && (!qkv.dims[2].known() || qkv.dims[2].value % all_heads() == 0),
             "qkv is not [batch, seq, " + std::to_string(all_heads()) + " heads]");
        Dim const seq = qkv.dims[1];
        for (Shape const& mask : mask_in(in, 1))
            need_mask(mask, {qkv.dims[0], {num_heads}, seq, seq});
        need_trailing(in, 1, qkv.dims[0]);
        Dim const size = math.apply(DimOp::kFloorDiv, qkv.dims[2], math.constant(all_heads()));
        out[0] = Shape{4, {qkv.dims[0], seq, math.constant(num_heads), size}};
    }

    size_t workspace(std::span<Tensor const> inputs) const {
        Tensor const& qkv = inputs[0];
        int64_t const size = qkv.dims[2] / all_heads();
        return qkv.type == DataType::kFloat
                   ? 0
                   : attention_workspace(qkv.dims[1], qkv.dims[1], size, size);
    }

    cudaError_t run(Call const& call) const {
        Tensor const &qkv = call.inputs[0], &y = call.outputs[0];
        if (!fits_int(qkv.dims[1]) || !fits_int(y.dims[3])) return cudaErrorInvalidValue;
        if (y.rows() * y.cols() == 0) return cudaSuccess;
        return with_type(y.type, [&]<class T>(std::type_identity<T>) {
            return attend<T>(filled<T>(call), call.workspace, call.stream);
        });
    }

  private:
    int64_t all_heads() const { return num_heads + 2 * kv_num_heads; }

    template <class T>
    Attention filled(Call const& call) const {
        Tensor const& qkv = call.inputs[0];
        int64_t const row = qkv.dims[2], seq = qkv.dims[1], size = row / all_heads();
        auto const from = [&](int64_t head) {
            return Heads{static_cast<T*>(qkv.data) + head * size, seq * row, size, row};
        };
        Attention a = attention(size, size);
        a.q = from(0), a.k = from(num_heads), a.v = from(num_heads + kv_num_heads);
        a.y = {call.outputs[0].data, seq * num_heads * size, size, num_heads * size};
        a.batch = qkv.dims[0];
        a.queries = a.keys = static_cast<int>(seq);
        fill_optional(a, call.inputs, 1);
        find_widths(a);
        return a;
    }
};

}  // namespace opfuse

OPFUSE_REGISTER_OP(opfuse::PackedAttention)
