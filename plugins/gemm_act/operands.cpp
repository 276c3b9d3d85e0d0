#include "operands.h"

#include <algorithm>
#include <limits>

#include "../core/shapes.h"
#include "blas.h"
#include "tactics.h"

namespace opfuse {
namespace {

constexpr int kMultiprocessors = 132;  // of an H100, whose times the estimates are
constexpr int kMostTimed = 5;

bool aligned(void const* data, size_t bytes) {
    return reinterpret_cast<uintptr_t>(data) % bytes == 0;
}

// Without data; no rows where a size is unknown.
Gemm sizes_of(Tensor const& x, Tensor const& weight, Product const& product) {
    Gemm g{};
    g.transposed = product.form == WeightForm::kTransposed;
    g.gated = product.form == WeightForm::kGated;
    g.activation = product.activation;
    if (x.rank == 0 || weight.rank != 2) return g;
    int64_t const cols = weight.dims[g.transposed ? 0 : 1] / (g.gated ? 2 : 1);
    if (x.rows() <= 0 || x.cols() <= 0 || cols <= 0) return g;
    g.rows = x.rows(), g.cols = static_cast<int>(cols), g.depth = static_cast<int>(x.cols());
    return g;
}

bool takes_blas(Product const& product) {
    return product.tactic == static_cast<int32_t>(Tactic::kBlas);
}

}  // namespace

Dim need_product(Shape const& x, Shape const& weight, bool transposed) {
    need_last_axis(x);
    if (weight.rank != 2) throw std::invalid_argument("weight is no matrix");
    Dim const depth = weight.dims[transposed ? 1 : 0], of_x = x.dims[x.rank - 1];
    if (depth.known() && of_x.known() && depth.value != of_x.value)
        throw std::invalid_argument("x has " + std::to_string(of_x.value) +
                                    " columns, and weight " + std::to_string(depth.value) +
                                    " rows");
    return weight.dims[transposed ? 0 : 1];
}

cudaError_t multiply(Operands const& operands, Product const& product, void* workspace,
                     cudaStream_t stream) {
    Tensor const &y = operands.y, &x = operands.x;
    int64_t const most = std::numeric_limits<int32_t>::max() / 2;
    if (x.cols() > most || y.cols() > most) return cudaErrorInvalidValue;
    if (y.rows() == 0 || y.cols() == 0) return cudaSuccess;
    Gemm g{};
    g.y = y.data, g.x = x.data, g.weight = operands.weight.data;
    g.bias = operands.bias, g.residual = operands.residual;
    g.rows = y.rows();
    g.cols = static_cast<int>(y.cols()), g.depth = static_cast<int>(x.cols());
    g.activation = product.activation, g.tactic = product.tactic;
    g.transposed = product.form == WeightForm::kTransposed;
    g.gated = product.form == WeightForm::kGated;
    bool const whole_rows = g.depth % 8 == 0 && (g.transposed || g.cols % 8 == 0);
    g.in_vectors = whole_rows && aligned(g.x, 16) && aligned(g.weight, 16);
    g.y_in_pairs = g.cols % 2 == 0 && aligned(g.y, 4);
    g.y_in_boxes = g.cols % 8 == 0 && aligned(g.y, 16) && aligned(g.residual, 16);
    bool const is_half = y.type == DataType::kFloat16;
    if (takes_blas(product)) {
        cudaError_t const status =
            blas_gemm(g, is_half, workspace, blas_workspace(g.rows, g.cols), stream);
        if (status != cudaErrorNotSupported) return status;
        g.tactic = static_cast<int32_t>(Tactic::kChoose);
    }
    return is_half ? multiply<__half>(g, stream) : multiply<__nv_bfloat16>(g, stream);
}

size_t workspace_of(Tensor const& x, Tensor const& weight, Product const& product) {
    if (!takes_blas(product)) return 0;
    Gemm const g = sizes_of(x, weight, product);
    return blas_workspace(g.rows, g.cols);
}

std::vector<int32_t> worth_timing(Tensor const& x, Tensor const& weight, Product const& product) {
    Gemm const g = sizes_of(x, weight, product);
    if (g.rows == 0) return {};
    // The estimates are wrong by less than a third.
    Ranking const ranking = rank_tactics(g, kMultiprocessors);
    std::vector<int32_t> found;
    if (has_epilogue_in_blas(g, product.has_residual) && has_blas())
        found.push_back(static_cast<int32_t>(Tactic::kBlas));
    for (int i = 0; i < std::min(ranking.count, kMostTimed); ++i)
        if (3 * ranking.ways[i].nanoseconds <= 4 * ranking.ways[0].nanoseconds)
            found.push_back(static_cast<int32_t>(ranking.ways[i].tactic));
    return found;
}

}  // namespace opfuse
