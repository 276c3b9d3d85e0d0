// The epilogue of a product on Hopper: sums in registers to y, 64 rows by 64 columns at a time.
#pragma once
#include "cluster.cuh"
#include "epilogue.cuh"
#include "shape.cuh"
#include "tensor_map.h"

namespace opfuse {

// What one warp group finishes.  kBlocks: of 8 columns, of a row of sums; gated, half of them are
// of the gate, and the others of what it lets through.
template <class T, class S, bool kGated, int kBlocks>
struct GemmFinish {
    static constexpr int kOutBlocks = kGated ? kBlocks / 2 : kBlocks;
    static constexpr int kAcross = kOutBlocks / 8, kChunks = S::kHeights * kAcross;

    GemmMaps const& maps;
    Gemm const& g;
    uint64_t* const barriers;     // of the two chunks
    unsigned char* const chunks;  // two, of this group
    int const group, lane, warp;
    bool const leader;      // of the group's threads, the one that copies
    uint32_t parities = 0;  // of the chunks' barriers, a bit each

    // Gated, there is none.
    __device__ bool has_residual() const { return !kGated && g.residual; }

    // Asks for the first chunks of the residual, once those of y are out of their place.
    __device__ void begin(GemmTile const& tile) {
        if (!has_residual() || !leader) return;
        device::wait_for_stores<0>();
        fetch(tile, 0);
        if (kChunks > 1) fetch(tile, 1);
    }

    __device__ void fetch(GemmTile const& tile, int chunk) {
        uint64_t* const barrier = &barriers[chunk % 2];
        device::arrive_expecting(barrier, S::kChunkBytes);
        device::copy_tile(chunks + chunk % 2 * S::kChunkBytes, maps.residual, barrier,
                          tile.col + chunk % kAcross * 64, tile.row + chunk / kAcross * 64);
    }

    // This thread's pairs of columns of the bias, zeros where there are none.
    __device__ void load_bias(uint32_t (&pairs)[kBlocks], GemmTile const& tile) const {
        T const* const bias = static_cast<T const*>(g.bias);
#pragma unroll
        for (int j = 0; j < kBlocks; ++j) {
            int const col = tile.col + j % kOutBlocks * 8 + lane % 4 * 2;
            bool const inside = bias && col < g.cols;
            int64_t const at = col + (j >= kOutBlocks ? int64_t{g.cols} : 0);
            pairs[j] = inside ? __ldg(reinterpret_cast<uint32_t const*>(bias + at)) : 0;
        }
    }

    // Rows lane / 4 + 8 r of two neighbouring blocks, with the bias.
    __device__ static void add_bias(float (&four)[4], float const (&sums)[kBlocks][4],
                                    uint32_t const (&bias)[kBlocks], int block, int r) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            float2 const b = device::unpack<T>(bias[block + i / 2]);
            four[i] = sums[block + i / 2][r * 2 + i % 2] + (i % 2 ? b.y : b.x);
        }
    }

    // Two neighbouring blocks of y as matrices for store_matrices, with `more` of the residual.
    template <device::Activation kActivation, bool kResidual>
    __device__ static void finish_blocks(uint32_t (&out)[4], float const (&sums)[kBlocks][4],
                                         uint32_t const (&bias)[kBlocks], int block,
                                         uint32_t const (&more)[4]) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            float four[4];
            add_bias(four, sums, bias, block, r);
            device::activate_four<kActivation>(four);
            if constexpr (kGated) {
                float up[4];
                add_bias(up, sums, bias, block + kOutBlocks, r);
#pragma unroll
                for (int i = 0; i < 4; ++i) four[i] *= up[i];
            }
            if constexpr (kResidual)
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    float2 const pair = device::unpack<T>(more[r + i / 2 * 2]);
                    four[i] += i % 2 ? pair.y : pair.x;
                }
            out[r] = device::pack<T>(four[0], four[1]);
            out[r + 2] = device::pack<T>(four[2], four[3]);
        }
    }

    // Waits until the chunk's place is free, or holds the residual.
    __device__ void await_chunk(int chunk) {
        if (has_residual()) {
            device::wait(&barriers[chunk % 2], parities >> chunk % 2 & 1);
            parities ^= 1 << chunk % 2;
        } else {
            if (leader) device::wait_for_stores<1>();
            device::meet(1 + group, 128);
        }
    }

    __device__ void store_chunk(GemmTile const& tile, int chunk) {
        device::publish_to_copies();
        device::meet(1 + group, 128);
        if (!leader) return;
        device::store_tile(maps.y, chunks + chunk % 2 * S::kChunkBytes,
                           tile.col + chunk % kAcross * 64, tile.row + chunk / kAcross * 64);
        device::commit_stores();
        if (has_residual() && chunk + 2 < kChunks) {
            device::wait_for_stores<0>();
            fetch(tile, chunk + 2);
        }
    }

    // All of a chunk is computed before any of it is stored, without a branch: where each store
    // waits for its own exponentials and divisions, an epilogue takes several times as long.
    template <device::Activation kActivation, bool kResidual>
    __device__ void finish_as(float const (&sums)[S::kHeights][kBlocks][4],
                              uint32_t const (&bias)[kBlocks], GemmTile const& tile) {
        // Lane i addresses row i % 16 of the warp's, and of a pair of blocks the i / 16 th.
        int const row = warp * 16 + lane % 16;
#pragma unroll
        for (int chunk = 0; chunk < kChunks; ++chunk) {
            uint32_t const row_at = device::shared_address(chunks + chunk % 2 * S::kChunkBytes) +
                                    row * device::kBoxBytes;
            auto const address = [&](int j) {
                return row_at + ((2 * j + lane / 16) ^ row % 8) * 16;
            };
            uint32_t more[4][4] = {}, out[4][4];
            if constexpr (kResidual) {
                await_chunk(chunk);
#pragma unroll
                for (int j = 0; j < 4; ++j) device::load_matrices_at(more[j], address(j));
            }
#pragma unroll
            for (int j = 0; j < 4; ++j)
                finish_blocks<kActivation, kResidual>(out[j], sums[chunk / kAcross], bias,
                                                      chunk % kAcross * 8 + 2 * j, more[j]);
            if constexpr (!kResidual) await_chunk(chunk);
#pragma unroll
            for (int j = 0; j < 4; ++j) device::store_matrices(address(j), out[j]);
            store_chunk(tile, chunk);
        }
    }

    __device__ void finish(float const (&sums)[S::kHeights][kBlocks][4],
                           uint32_t const (&bias)[kBlocks], GemmTile const& tile) {
        auto const as = [&]<device::Activation kActivation>() {
            if constexpr (!kGated)
                if (g.residual) return finish_as<kActivation, true>(sums, bias, tile);
            finish_as<kActivation, false>(sums, bias, tile);
        };
        using enum device::Activation;
        switch (g.activation) {
        case kNone: return as.template operator()<kNone>();
        case kRelu: return as.template operator()<kRelu>();
        case kGelu: return as.template operator()<kGelu>();
        case kGeluTanh: return as.template operator()<kGeluTanh>();
        case kQuickGelu: return as.template operator()<kQuickGelu>();
        case kSilu: return as.template operator()<kSilu>();
        }
    }
};

}  // namespace opfuse
