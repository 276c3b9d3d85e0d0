// What it costs a product that as many bytes as a residual has come to L2 beside it.  The thread
// that asks for the stages of tiles of 192 rows asks for some of them with each stage, evenly over
// the run, and nobody reads them.  `benchmarks.product_floors` compiles and times it.
#include "../plugins/gemm_act/hopper.cuh"

namespace opfuse {

using Plain = GemmShape<Sharing::kTurns, 2, 2, 192, 4, 2>;
template <int kKind>
struct Asking : Plain {};

// Bytes that come with stages, one portion after another; those at `from` and as many as `mask`,
// one less than a power of two, says come over and over.
struct Asked {
    char const* from;
    uint32_t mask;
    int tiles_across, steps, portion;
};
__constant__ Asked asked[2];

__device__ void load_and_ask(Asked const& of, unsigned char* to, GemmMaps const& maps,
                             uint64_t* barrier, GemmTile const& tile, int k, int rank) {
    load_x<WithStores<Plain>>(to, maps, barrier, tile, k, rank);
    int const of_tile = tile.row / Plain::kRows * of.tiles_across + tile.col / 128;
    uint32_t const at = static_cast<uint32_t>((of_tile * of.steps + k / 64) * of.portion) & of.mask;
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(of.from + at), "r"(of.portion)
                 : "memory");
}

template <>
__device__ void load_x<WithStores<Asking<0>>>(unsigned char* to, GemmMaps const& maps,
                                              uint64_t* barrier, GemmTile const& tile, int k,
                                              int rank) {
    load_and_ask(asked[0], to, maps, barrier, tile, k, rank);
}

template <>
__device__ void load_x<WithStores<Asking<1>>>(unsigned char* to, GemmMaps const& maps,
                                              uint64_t* barrier, GemmTile const& tile, int k,
                                              int rank) {
    load_and_ask(asked[1], to, maps, barrier, tile, k, rank);
}

}  // namespace opfuse

// What `kind`, 0 or 1, asks for beside a product of this shape: the bytes at `from`, which has
// [rows of whole tiles, cols] of fp16, or the first `mask` + 1 of them.  A cudaError_t.
extern "C" int opfuse_ask(int kind, void const* from, uint32_t mask, int cols, int depth) {
    int const across = (cols + 127) / 128, steps = (depth + 63) / 64;
    int const tile_bytes = opfuse::Plain::kRows * 128 * 2;
    opfuse::Asked const of{static_cast<char const*>(from), mask, across, steps,
                           tile_bytes / steps / 16 * 16};
    return cudaMemcpyToSymbol(opfuse::asked, &of, sizeof(of), kind * sizeof(of));
}

// y = x w of fp16, alone (kind -1) or beside what is asked for.  A cudaError_t.
extern "C" int opfuse_product(int kind, void* y, void const* x, void const* weight, int64_t rows,
                              int cols, int depth, cudaStream_t stream) {
    opfuse::Gemm g{};
    g.y = y, g.x = x, g.weight = weight, g.rows = rows, g.cols = cols, g.depth = depth;
    auto const run = [&]<class S>() {
        using Kernel = opfuse::WithStores<S>;
        return opfuse::launch_hopper_kernel<__half, Kernel, true, false>(g, 11, stream);
    };
    if (kind == 0) return run.template operator()<opfuse::Asking<0>>();
    if (kind == 1) return run.template operator()<opfuse::Asking<1>>();
    return run.template operator()<opfuse::Plain>();
}
