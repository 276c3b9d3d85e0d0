#include "../core/op.h"

#include "../core/shapes.h"
#include "../device/dispatch.h"
#include "launch.h"

namespace opfuse {

struct QkNormRope {
    // qkv, cos, sin, then q_gamma and k_gamma if `norm`, then bias if `bias` -> q, k, v
    static constexpr OpTraits kTraits{"QkNormRope", "1", 3, 6, 3};
    static constexpr int64_t kMaxHeads = 1 << 16;

    int64_t interleaved = 0;
    int64_t rotary_dim = 0;  // elements of a head that turn; 0 for all
    int64_t head_size = 0;   // given where these are not all
    int64_t num_heads = 1;
    int64_t kv_num_heads = 1;
    int64_t norm = 0;
    int64_t bias = 0;
    float epsilon = 1e-5f;

    static auto fields() {
        using Int = Field<QkNormRope, int64_t>;
        return std::tuple(Int{"interleaved", &QkNormRope::interleaved},
                          Int{"rotary_dim", &QkNormRope::rotary_dim},
                          Int{"head_size", &QkNormRope::head_size},
                          Int{"num_heads", &QkNormRope::num_heads},
                          Int{"kv_num_heads", &QkNormRope::kv_num_heads},
                          Int{"norm", &QkNormRope::norm}, Int{"bias", &QkNormRope::bias},
                          Field<QkNormRope, float>{"epsilon", &QkNormRope::epsilon});
    }
    void check() const {
        need_flag("interleaved", interleaved);
        need_flag("norm", norm);
        need_flag("bias", bias);
        need_rotary_dim(rotary_dim);
        need_range("num_heads", num_heads, 1, kMaxHeads);
        need_range("kv_num_heads", kv_num_heads, 1, kMaxHeads);
        check_epsilon(epsilon);
    }

    bool accepts(size_t input, std::span<DataType const> types) const {
        if (input == 0) return is_floating(types[0]);
        return is_parameter_of(types[0], types[input]);
    }
    void types(std::span<DataType const> in, std::span<DataType> out) const {
        out[0] = out[1] = out[2] = in[0];
    }
    void shapes(std::span<Shape const> in, std::span<Shape> out, DimMath& math) const {
        if (in.size() != bias_input() + static_cast<size_t>(bias))
            throw std::invalid_argument(std::to_string(in.size()) +
                                        " inputs are not those that norm and bias tell of");
        Shape const& qkv = in[0];
        int64_t const all_heads = num_heads + 2 * kv_num_heads;
        if (qkv.rank != 3 || (qkv.dims[2].known() && qkv.dims[2].value % all_heads != 0))
            throw std::invalid_argument("qkv is not [batch, seq, " + std::to_string(all_heads) +
                                        " heads]");
        Dim const size = math.apply(DimOp::kFloorDiv, qkv.dims[2], math.constant(all_heads));
        auto const heads = [&](int64_t count) {
            return Shape{4, {qkv.dims[0], math.constant(count), qkv.dims[1], size}};
        };
        out[0] = heads(num_heads);
        out[1] = out[2] = heads(kv_num_heads);
        Shape const one_head = heads(1);
        Dim const turning = need_turning(rotary_dim, head_size, size);
        need_rows_for("cos", in[1], one_head, turning);
        need_rows_for("sin", in[2], one_head, turning);
        if (norm) need_columns("q_gamma", in[3], one_head);
        if (norm) need_columns("k_gamma", in[4], one_head);
        if (bias) need_columns("bias", in[bias_input()], qkv);
    }

    cudaError_t run(Call const& call) const {
        Tensor const &qkv = call.inputs[0], &cos = call.inputs[1], &sin = call.inputs[2];
        QkNormRopeShape const shape{qkv.dims[0],
                                    qkv.dims[1],
                                    static_cast<int>(num_heads),
                                    static_cast<int>(kv_num_heads),
                                    static_cast<int>(call.outputs[0].cols()),
                                    static_cast<int>(cos.cols()),
                                    batch_stride(cos),
                                    seq_stride(cos),
                                    batch_stride(sin),
                                    seq_stride(sin)};
        QkNormRopeParameters given{parameter(cos), parameter(sin), {}, {}, {}, epsilon};
        if (norm) given.q_gamma = parameter(call.inputs[3]);
        if (norm) given.k_gamma = parameter(call.inputs[4]);
        if (bias) given.bias = parameter(call.inputs[bias_input()]);
        return with_type(qkv.type, [&]<class T>(std::type_identity<T>) {
            return qk_norm_rope<T>(data<T>(call.outputs[0]), data<T>(call.outputs[1]),
                                   data<T>(call.outputs[2]), data<T>(qkv), given, shape,
                                   interleaved != 0, call.stream);
        });
    }

  private:
    size_t bias_input() const { return norm ? 5 : 3; }

    // cos and sin: up to [batch, 1, seq, rotary_dim], one row for all along axes of size 1.
    static int64_t positions(Tensor const& rows) {
        return rows.rank < 2 ? 1 : rows.dims[rows.rank - 2];
    }
    static int64_t seq_stride(Tensor const& rows) { return positions(rows) == 1 ? 0 : 1; }
    static int64_t batch_stride(Tensor const& rows) {
        return rows.rank < 4 || rows.dims[0] == 1 ? 0 : positions(rows);
    }
};

}  // namespace opfuse

OPFUSE_REGISTER_OP(opfuse::QkNormRope)
