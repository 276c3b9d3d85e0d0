// The epilogue of a product on Hopper: sums in registers to y, some rows of 64 columns at a time.
#pragma once
#include "cluster.cuh"
#include "epilogue.cuh"
#include "shape.cuh"
#include "tensor_map.h"

namespace opfuse {

// What one warp group finishes: sums are [columns of the weight, rows of x], so that a thread has
// two columns of each height, and turned where they are stored.
//
// By turns and without a residual, all of a tile is unrolled: sums stay where they are, and special
// functions have the registers of chunks before them.  4096x768x3072 with SiLU takes 32.4 us so, as
// a loop 33.3; 3072x768x3072 with SiLU, GELU, and its tanh 24.1, 27.1, and 25.1, not 25.8, 27.3,
// and 26.7.  Elsewhere chunks are a loop: what it works on moves to the first registers before each
// turn.
template <class T, class S, bool kGated>
struct GemmFinish {
    static constexpr int kBlocks = S::kRows / 8;  // of 8 rows
    static constexpr int kOfChunk = S::kChunkRows / 8, kAcross = kBlocks / kOfChunk;
    static constexpr int kOutHeights = kGated ? 1 : S::kHeights;
    static constexpr int kChunks = kOutHeights * kAcross, kSlots = S::kSlots;
    static_assert(kBlocks % kOfChunk == 0 && (!kGated || S::kHeights == 2));
    using Sums = float[S::kHeights][kBlocks][4];
    using Bias = float[S::kHeights][2];
    using RawBias = uint32_t[S::kHeights][2];  // bits of T

    GemmMaps const& maps;
    Gemm const& g;
    GemmBarriers<S>& barriers;
    unsigned char* const stages;
    unsigned char* const chunks;  // the slots of this group
    int const group, lane, warp;
    bool const leader;                  // of the group's threads, the one that copies
    unsigned char* residual = nullptr;  // the stage that has it, or its last chunks
    int turn = 0;                       // the group's tiles before
    int first_slot = 0;                 // and the slots that they took

    // By turns.
    __device__ int slot_of(int chunk) const { return (first_slot + chunk) % kSlots; }
    __device__ bool is_in_stage(int chunk) const { return chunk >= kSlots && residual; }

    __device__ unsigned char* place_of_slot(int chunk) const {
        if (S::kResidualSlots && is_in_stage(chunk))
            return residual + (chunk - kSlots) * S::kChunkBytes;
        return chunks + (S::kResidualSlots ? slot_of(chunk) : chunk % kSlots) * S::kChunkBytes;
    }

    // Zeros where there is none.  Bits, which settle_bias() makes numbers of: what is made of them
    // here would wait for them before the first products.
    __device__ void load_bias(RawBias& bias, GemmTile const& tile) const {
        uint16_t const* const from = static_cast<uint16_t const*>(g.bias);
#pragma unroll
        for (int h = 0; h < S::kHeights; ++h)
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                int const col = tile.col + (kGated ? 0 : h * 64) + warp * 16 + lane / 4 + r * 8;
                int64_t const at = col + (kGated && h > 0 ? int64_t{g.cols} : 0);
                bias[h][r] = from && col < g.cols ? from[at] : 0;
            }
    }

    __device__ static void settle_bias(Bias& bias, RawBias& raw) {
#pragma unroll
        for (int h = 0; h < S::kHeights; ++h)
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                asm volatile("" : "+r"(raw[h][r]));
                bias[h][r] = device::unpack<T>(raw[h][r]).x;
            }
    }

    // Column r of the thread's two, of two neighbouring blocks.
    template <device::Activation kActivation>
    __device__ static void activate(float (&four)[4], float const (&sums)[kBlocks][4], float bias,
                                    int block, int r) {
#pragma unroll
        for (int i = 0; i < 4; ++i) four[i] = sums[block + i / 2][r * 2 + i % 2];
        float const biases[4] = {bias, bias, bias, bias};
        device::activate_four<kActivation>(four, biases);
    }

    // Two neighbouring blocks of y for store_turned, with `more` of the residual.
    template <device::Activation kActivation, bool kResidual>
    __device__ static void finish_blocks(uint32_t (&out)[4], Sums const& sums, Bias const& bias,
                                         int block, uint32_t const (&more)[4]) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            float four[4];
            activate<kActivation>(four, sums[0], bias[0][r], block, r);
            if constexpr (kGated) {
                float up[4];
                activate<device::Activation::kNone>(up, sums[1], bias[1][r], block, r);
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

    __device__ void await_residual(int chunk) const {
        if (is_in_stage(chunk)) return;
        device::wait(&barriers.slots.come[group][slot_of(chunk)],
                     (first_slot + chunk) / kSlots & 1);
    }

    // The chunk's slot, to the warp that stores it.
    __device__ void pass_on(int chunk) const {
        device::publish_to_copies();
        __syncwarp();
        if (lane == 0) device::arrive(&barriers.slots.ready[group][chunk]);
    }

    // Waits until the chunk's slot is free, where store_chunk of the one before it has not.
    __device__ void await_slot(int chunk) {
        if constexpr (S::kStoringWarps) {
            int const slot = chunk % kSlots;  // whose last chunk in a tile is
            int const last = slot + (kChunks - 1 - slot) / kSlots * kSlots;
            bool const is_own = chunk >= kSlots;  // of this tile, what was in it
            device::wait(&barriers.slots.read[group][is_own ? chunk - kSlots : last],
                         (is_own ? turn : turn + 1) & 1);
            return;
        }
        if (kSlots > 1 && chunk > 0) return;
        if (leader) device::wait_for_stores<0>();
        device::meet(1 + group, 128);
    }

    __device__ void store_chunk(GemmTile const& tile, int chunk) {
        device::publish_to_copies();
        if (kSlots > 1 && leader) device::wait_for_stores < kSlots<2 ? 0 : kSlots - 2>();
        device::meet(1 + group, 128);
        if (!leader) return;
        device::store_tile(maps.y, chunks + chunk % kSlots * S::kChunkBytes,
                           tile.col + chunk / kAcross * 64,
                           tile.row + chunk % kAcross * S::kChunkRows);
        device::commit_stores();
    }

    // Where this lane's row of a pair of blocks begins: row i % 8 of block i / 16, with the first
    // or the second 8 columns of the warp's.
    __device__ uint32_t place_in(unsigned char const* chunk) const {
        int const row = lane / 16 * 8 + lane % 8, unit = warp * 2 + lane / 8 % 2;
        return device::shared_address(chunk) + row * device::kBoxBytes + (unit ^ row % 8) * 16;
    }

    // All of a chunk is computed before any of it is stored, without a branch: where each store
    // waits for its own exponentials and divisions, an epilogue takes several times as long.
    template <device::Activation kActivation, bool kResidual>
    __device__ void finish_chunk(Sums const& sums, Bias const& bias, GemmTile const& tile,
                                 int chunk) {
        constexpr int kPairs = kOfChunk / 2;
        uint32_t const at = place_in(place_of_slot(chunk));
        uint32_t more[kPairs][4] = {}, out[kPairs][4];
        if constexpr (kResidual) {
            if constexpr (S::kResidualSlots) await_residual(chunk);
            uint32_t const from =
                S::kResidualStages ? place_in(residual + chunk * S::kChunkBytes) : at;
#pragma unroll
            for (int j = 0; j < kPairs; ++j)
                device::load_turned(more[j], from + j * 16 * device::kBoxBytes);
        }
#pragma unroll
        for (int j = 0; j < kPairs; ++j)
            finish_blocks<kActivation, kResidual>(out[j], sums, bias, 2 * j, more[j]);
        if constexpr (!kResidual || S::kResidualStages) await_slot(chunk);
#pragma unroll
        for (int j = 0; j < kPairs; ++j)
            device::store_turned(at + j * 16 * device::kBoxBytes, out[j]);
        if constexpr (S::kResidualSlots || S::kStoringWarps)
            pass_on(chunk);
        else
            store_chunk(tile, chunk);
    }

    // With a condition the old sums stay alive, and special functions wait for one another for
    // want of registers: 4096x3072x768 with GELU takes 33.8 us so, without it 31.9.  By turns it is
    // the other way round: 4096x768x3072 with SiLU takes 34.8 us with it, 36.3 without.
    static constexpr bool kShiftsAlways = !S::kTurns && S::kHeights == 1;

    // The next chunk's sums to the front.
    __device__ static void shift(Sums& sums) {
#pragma unroll
        for (int h = 0; h < (kGated ? 2 : 1); ++h)
#pragma unroll
            for (int j = 0; j + kOfChunk < kBlocks; ++j)
#pragma unroll
                for (int i = 0; i < 4; ++i) sums[h][j][i] = sums[h][j + kOfChunk][i];
    }

    __device__ static void next_height(Sums& sums, Bias& bias) {
        constexpr int kNext = S::kHeights - 1;
#pragma unroll
        for (int j = 0; j < kBlocks; ++j)
#pragma unroll
            for (int i = 0; i < 4; ++i) sums[0][j][i] = sums[kNext][j][i];
        bias[0][0] = bias[kNext][0], bias[0][1] = bias[kNext][1];
    }

    template <device::Activation kActivation, bool kResidual>
    __device__ void finish_as(Sums& sums, Bias& bias, GemmTile const& tile) {
        using enum device::Activation;
        constexpr bool kShort = kActivation == kNone || kActivation == kRelu;
        constexpr bool kUnrolled =
            !kGated && (kResidual ? kShort && S::kResidualSlots : kShort || S::kTurns);
        constexpr int kHeightsAtOnce = kUnrolled ? kOutHeights : 1;
        constexpr int kAtOnce = kUnrolled ? kAcross : 1;
#pragma unroll kHeightsAtOnce
        for (int h = 0; h < kOutHeights; ++h) {
#pragma unroll kAtOnce
            for (int c = 0; c < kAcross; ++c) {
                finish_chunk<kActivation, kResidual>(sums, bias, tile, h * kAcross + c);
                if (kShiftsAlways || c + 1 < kAcross) shift(sums);
            }
            if (h + 1 < kOutHeights) next_height(sums, bias);
        }
    }

    // Leaves nothing in `sums`.
    __device__ void finish(Sums& sums, RawBias& raw, GemmTile const& tile) {
        Bias bias;
        settle_bias(bias, raw);
        auto const as = [&]<device::Activation kActivation>() {
            if constexpr (S::kResidualStages && !kGated)
                if (g.residual) return finish_as<kActivation, true>(sums, bias, tile);
            finish_as<kActivation, S::kResidualSlots>(sums, bias, tile);
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
