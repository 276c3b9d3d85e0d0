#include "blas.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <tuple>

#include "blas_library.h"

namespace opfuse {
namespace {

// What cuBLASLt chooses by.
struct Case {
    int device;
    bool is_half, transposed, has_bias, has_residual;
    device::Activation activation;
    int64_t rows;
    int cols, depth, alignment;
    size_t workspace;

    auto key() const {
        return std::tuple(device, is_half, transposed, has_bias, has_residual, activation, rows,
                          cols, depth, alignment, workspace);
    }
    bool operator<(Case const& other) const { return key() < other.key(); }
};

// Its objects for one case, kept for the life of the process.  y is seen as [columns, rows] with
// its columns innermost: y^T = w^T x^T.
struct Plan {
    void *handle = nullptr, *product = nullptr;
    void *weight = nullptr, *x = nullptr, *y = nullptr;
    BlasChoice choice{};
    bool usable = false;
};

// Bytes, at most 256, of which all addresses are multiples.
int common_alignment(Gemm const& g) {
    auto const bits = reinterpret_cast<uintptr_t>(g.x) | reinterpret_cast<uintptr_t>(g.weight) |
                      reinterpret_cast<uintptr_t>(g.y) | reinterpret_cast<uintptr_t>(g.residual);
    return static_cast<int>(std::min<uintptr_t>(256, bits & -bits));
}

int epilogue(Case const& c) {
    int const of_bias = c.has_bias ? blas::kBias : 0;
    if (c.activation == device::Activation::kRelu) return blas::kRelu | of_bias;
    if (c.activation == device::Activation::kGeluTanh) return blas::kGelu | of_bias;
    return c.has_bias ? blas::kBias : blas::kPlain;
}

bool describe(Plan& plan, Case const& c) {
    BlasLibrary const& blas = blas_library();
    cudaDataType const type = c.is_half ? CUDA_R_16F : CUDA_R_16BF;
    auto const layout = [&](void*& out, int64_t rows, int64_t cols) {
        return blas.create_layout(&out, type, rows, cols, rows) == 0;
    };
    int const transpose = c.transposed ? 1 : 0, kind = epilogue(c);
    return blas.create_product(&plan.product, blas::kSumsInFloat, CUDA_R_32F) == 0 &&
           blas.set_product(plan.product, blas::kTransposeA, &transpose, sizeof transpose) == 0 &&
           blas.set_product(plan.product, blas::kEpilogue, &kind, sizeof kind) == 0 &&
           layout(plan.weight, c.transposed ? c.depth : c.cols, c.transposed ? c.cols : c.depth) &&
           layout(plan.x, c.depth, c.rows) && layout(plan.y, c.cols, c.rows);
}

bool choose(Plan& plan, Case const& c) {
    BlasLibrary const& blas = blas_library();
    void* preference = nullptr;
    if (blas.create_preference(&preference) != 0) return false;
    uint32_t const alignment = c.alignment;
    bool set = blas.set_preference(preference, blas::kMostWorkspace, &c.workspace,
                                   sizeof c.workspace) == 0;
    for (int const which :
         {blas::kAlignmentA, blas::kAlignmentB, blas::kAlignmentC, blas::kAlignmentD})
        set = set && blas.set_preference(preference, which, &alignment, sizeof alignment) == 0;
    int found = 0;
    return set &&
           blas.choose(plan.handle, plan.product, plan.weight, plan.x, plan.y, plan.y, preference,
                       1, &plan.choice, &found) == 0 &&
           found == 1 && plan.choice.status == 0 && plan.choice.workspace <= c.workspace;
}

bool suits_blas(Gemm const& g) {
    bool const odd_bias = reinterpret_cast<uintptr_t>(g.bias) % 16 != 0;
    return has_epilogue_in_blas(g, g.residual != nullptr) && !odd_bias && g.in_vectors &&
           g.y_in_boxes && g.depth > 0;
}

// All plans and handles; a plan is in use by one thread at a time, since it holds the bias.
struct Plans {
    std::mutex mutex;
    std::map<Case, Plan> plans;
    std::map<int, void*> handles;  // by device

    // Null where there is none and none can be made now.
    Plan* find(Case const& c, cudaStream_t stream) {
        if (auto const known = plans.find(c); known != plans.end())
            return known->second.usable ? &known->second : nullptr;
        cudaStreamCaptureStatus capturing = cudaStreamCaptureStatusNone;
        if (cudaStreamIsCapturing(stream, &capturing) != cudaSuccess ||
            capturing != cudaStreamCaptureStatusNone)
            return nullptr;
        void*& handle = handles[c.device];
        if (!handle && blas_library().create(&handle) != 0) handle = nullptr;
        if (!handle) return nullptr;
        Plan& plan = plans[c];
        plan.handle = handle;
        plan.usable = describe(plan, c) && choose(plan, c);
        return plan.usable ? &plan : nullptr;
    }
};

Plans& all_plans() {
    static auto* const plans = new Plans;  // never destroyed: a thread may be in it at exit
    return *plans;
}

}  // namespace

bool has_blas() { return blas_library().loaded(); }

bool has_epilogue_in_blas(Gemm const& g, bool has_residual) {
    using enum device::Activation;
    if (g.activation == kNone) return !g.gated;
    // It adds a residual ahead of the activation.
    bool const fused = g.activation == kRelu || g.activation == kGeluTanh;
    return fused && !has_residual && !g.gated;
}

size_t blas_workspace(int64_t rows, int64_t cols) {
    // For the sums of a depth in parts, which few rows have.
    constexpr int64_t kMost = 32 << 20, kParts = 8;
    return static_cast<size_t>(std::min(kMost, rows * cols * 4 * kParts));
}

cudaError_t blas_gemm(Gemm const& g, bool is_half, void* workspace, size_t bytes,
                      cudaStream_t stream) {
    if (!suits_blas(g) || !has_blas()) return cudaErrorNotSupported;
    Case c{};
    if (cudaError_t const status = cudaGetDevice(&c.device)) return status;
    c.is_half = is_half, c.transposed = g.transposed;
    c.has_bias = g.bias != nullptr, c.has_residual = g.residual != nullptr;
    c.activation = g.activation;
    c.rows = g.rows, c.cols = g.cols, c.depth = g.depth;
    c.alignment = common_alignment(g), c.workspace = workspace ? bytes : 0;
    Plans& all = all_plans();
    std::lock_guard const lock(all.mutex);
    Plan* const plan = all.find(c, stream);
    if (!plan) return cudaErrorNotSupported;
    BlasLibrary const& blas = blas_library();
    if (g.bias && blas.set_product(plan->product, blas::kBiasPointer, &g.bias, sizeof g.bias) != 0)
        return cudaErrorNotSupported;
    float const one = 1.f, of_residual = g.residual ? 1.f : 0.f;
    void const* const added = g.residual ? g.residual : g.y;
    int const status = blas.multiply(plan->handle, plan->product, &one, g.weight, plan->weight, g.x,
                                     plan->x, &of_residual, added, plan->y, g.y, plan->y,
                                     &plan->choice.algorithm, workspace, c.workspace, stream);
    return status == 0 ? cudaSuccess : cudaErrorNotSupported;
}

}  // namespace opfuse
