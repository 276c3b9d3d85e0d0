#include <string_view>

#include "../device/dispatch.h"
#include "attributes.h"

namespace opfuse {

struct FlashAttention : AttentionAttributes {
    // q, k, v, mask?, slopes?, lengths? -> y; see fusions/attention.py
    static constexpr OpTraits kTraits{"FlashAttention", "1", 3, 6, 1};

    std::string layout = "BHSD";

    static auto fields() {
        return std::tuple_cat(
            common_fields<FlashAttention>(),
            std::tuple(Field<FlashAttention, std::string>{"layout", &FlashAttention::layout}));
    }
    void check() const {
        AttentionAttributes::check();
        bool known = layout.size() == 4 || layout.size() == 5 * kOperands - 1;
        for (size_t i = 0; known && i < layout.size(); i += 5) {
            auto const one = std::string_view(layout).substr(i, 4);
            bool const ends = i + 4 == layout.size() || layout[i + 4] == ',';
            known = (one == "BHSD" || one == "BSHD") && ends;
        }
        need(known, "attribute 'layout' is '" + layout +
                        "', need BHSD or BSHD, or four of them with commas: q, k, v, y");
    }

    bool accepts(size_t input, std::span<DataType const> types) const {
        if (input == 0) return is_floating(types[0]);
        return input >= kMask ? accepts_optional(input, types, kMask) : types[input] == types[0];
    }
    void types(std::span<DataType const> in, std::span<DataType> out) const {
        out[0] = result_type(in);
    }
    void shapes(std::span<Shape const> in, std::span<Shape> out, DimMath&) const {
        Shape const &q = in[0], &k = in[1], &v = in[2];
        need(q.rank == 4 && k.rank == 4 && v.rank == 4, "q, k, or v has not four axes");
        Dim const queries = q.dims[rows_axis(kQ)], keys = k.dims[rows_axis(kK)];
        need_equal(q.dims[3 - rows_axis(kQ)], {num_heads}, "q has not num_heads heads");
        need_equal(k.dims[3 - rows_axis(kK)], {kv_num_heads}, "k has not kv_num_heads heads");
        need_equal(v.dims[3 - rows_axis(kV)], {kv_num_heads}, "v has not kv_num_heads heads");
        need_equal(k.dims[0], q.dims[0], "k has not the batch of q");
        need_equal(v.dims[0], q.dims[0], "v has not the batch of q");
        need_equal(k.dims[3], q.dims[3], "k has not the head size of q");
        need_equal(v.dims[rows_axis(kV)], keys, "v has not the keys of k");
        for (Shape const& mask : mask_in(in, kMask))
            need_mask(mask, {q.dims[0], {num_heads}, queries, keys});
        need_trailing(in, kMask, q.dims[0]);
        out[0] = q;
        out[0].dims[rows_axis(kY)] = queries;
        out[0].dims[3 - rows_axis(kY)] = q.dims[3 - rows_axis(kQ)];
        out[0].dims[3] = v.dims[3];
    }

    size_t workspace(std::span<Tensor const> inputs) const {
        if (inputs[0].type == DataType::kFloat) return 0;
        int64_t const queries = inputs[kQ].dims[rows_axis(kQ)];
        int64_t const keys = inputs[kK].dims[rows_axis(kK)];
        return attention_workspace(queries, keys, inputs[kQ].dims[3], inputs[kV].dims[3]);
    }

    cudaError_t run(Call const& call) const {
        Tensor const &q = call.inputs[0], &k = call.inputs[1], &v = call.inputs[2];
        Tensor const& y = call.outputs[0];
        int64_t const queries = q.dims[rows_axis(kQ)], keys = k.dims[rows_axis(kK)];
        for (int64_t const size : {queries, keys, q.dims[3], v.dims[3]})
            if (!fits_int(size)) return cudaErrorInvalidValue;
        size_t const bytes = y.rows() * y.cols() * (y.type == DataType::kFloat ? 4 : 2);
        if (bytes == 0) return cudaSuccess;
        if (keys == 0) return cudaMemsetAsync(y.data, 0, bytes, call.stream);
        return with_type(y.type, [&]<class T>(std::type_identity<T>) {
            return attend<T>(filled(call), call.workspace, call.stream);
        });
    }

  private:
    static constexpr size_t kQ = 0, kK = 1, kV = 2, kY = 3, kOperands = 4;  // in `layout`
    static constexpr size_t kMask = 3;                                      // the input's index

    // Which axis of an operand has the queries or keys; 3 minus that has the heads.
    int rows_axis(size_t operand) const {
        return layout[layout.size() == 4 ? 1 : 5 * operand + 1] == 'S' ? 1 : 2;
    }
    Heads heads_of(size_t operand, Tensor const& tensor) const {
        int64_t const size = tensor.dims[3], inner = tensor.dims[2] * size;
        bool const heads_first = rows_axis(operand) == 2;
        return {tensor.data, tensor.dims[1] * inner, heads_first ? inner : size,
                heads_first ? size : inner};
    }

    Attention filled(Call const& call) const {
        Tensor const &q = call.inputs[kQ], &k = call.inputs[kK], &v = call.inputs[kV];
        Attention a = attention(q.dims[3], v.dims[3]);
        a.y = heads_of(kY, call.outputs[0]);
        a.q = heads_of(kQ, q), a.k = heads_of(kK, k), a.v = heads_of(kV, v);
        a.batch = q.dims[0];
        a.queries = static_cast<int>(q.dims[rows_axis(kQ)]);
        a.keys = static_cast<int>(k.dims[rows_axis(kK)]);
        fill_optional(a, call.inputs, kMask);
        find_widths(a);
        return a;
    }
};

}  // namespace opfuse

OPFUSE_REGISTER_OP(opfuse::FlashAttention)
