// The same on Hopper for so few keys that all of a row's scores fit into registers: a block loads a
// head's keys and values once, and takes one tile of queries after another.
#pragma once
#include "../device/launch.cuh"
#include "hopper_parts.cuh"

namespace opfuse {

// ---- kernels

// kSize: the head sizes rounded up to an instance; kKeys: at most; kResident: blocks that share a
// multiprocessor, so that one's softmax falls into another's products and copies.
template <int kSize_, int kKeys_, int kResident_>
struct WholeShape {
    static constexpr int kSize = kSize_, kKeys = kKeys_, kResident = kResident_;
    static constexpr int kThreads = 128, kRows = 64;
    static constexpr int kTileBytes =
        kKeys * boxes_of(kSize) * device::kBoxBytes;  // of keys or values
    static constexpr int kQueryBytes = kRows * boxes_of(kSize) * device::kBoxBytes;
    // Two places for queries, 1024 more to align the tiles, and the barriers.
    static constexpr int kSharedBytes = 2 * kQueryBytes + 2 * kTileBytes + 1024 + 64;
};

struct WholeBarriers {
    uint64_t queries[2], keys, values;  // hold what was asked for

    __device__ void init() {
        device::init_barrier(&queries[0], 1);
        device::init_barrier(&queries[1], 1);
        device::init_barrier(&keys, 1);
        device::init_barrier(&values, 1);
        device::publish_barriers();
    }
};

// Hides what is not seen in those blocks of scores that all rows of the warp do not see whole.
template <int kBlocks>
__device__ void hide_in_blocks(float (&s)[kBlocks][4], KeyRange const (&seen)[2],
                               KeyRange const& all_see, int key) {
#pragma unroll
    for (int i = 0; i < kBlocks; ++i)
        if (8 * i < all_see.begin || 8 * i + 8 > all_see.end) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                int const own = key + 8 * i + e % 2;
                if (own < seen[e / 2].begin || own >= seen[e / 2].end) s[i][e] = -INFINITY;
            }
        }
}

// Block `part` of the `parts` that share a head takes every parts-th of its `tiles`.
template <class T, class S, bool kPlain>
__global__ void __launch_bounds__(S::kThreads, S::kResident)
    whole_kernel(Attention const a, int tiles, int parts,
                 __grid_constant__ AttentionMaps const maps) {
    constexpr int kBlocks = S::kKeys / 8;
    extern __shared__ __align__(16) unsigned char shared[];
    unsigned char* const k = shared + (1024 - device::shared_address(shared) % 1024) % 1024;
    unsigned char* const v = k + S::kTileBytes;
    unsigned char* const q = v + S::kTileBytes;
    auto& barriers = *reinterpret_cast<WholeBarriers*>(q + 2 * S::kQueryBytes);
    int const head_index = blockIdx.x / parts, part = blockIdx.x % parts;
    int const batch = head_index / a.heads, head = head_index % a.heads;
    int const kv_head = head / (a.heads / a.kv_heads);
    auto const load_queries = [&](int place, int tile) {
        load_rows<S>(q + place * S::kQueryBytes, maps.q, &barriers.queries[place], S::kRows,
                     tile * S::kRows, head, batch);
    };
    if (threadIdx.x == 0) {
        barriers.init();
        load_rows<S>(k, maps.k, &barriers.keys, S::kKeys, 0, kv_head, batch);
        load_queries(0, part);
        load_rows<S>(v, maps.v, &barriers.values, S::kKeys, 0, kv_head, batch);
        if (part + parts < tiles) load_queries(1, part + parts);
    }
    __syncthreads();

    int const lane = threadIdx.x % 32;
    uint64_t const queries =
        device::describe_box(device::shared_address(q), S::kRows * device::kBoxBytes);
    uint64_t const keys =
        device::describe_box(device::shared_address(k), S::kKeys * device::kBoxBytes);
    uint64_t const values =
        device::describe_box(device::shared_address(v), S::kKeys * device::kBoxBytes);
    float const log2_scale = kPlain ? a.scale * kLog2E : kLog2E;
    int place = 0, parity = 0;
    for (int tile = part; tile < tiles; tile += parts) {
        int const warp_row = tile * S::kRows + threadIdx.x / 32 * 16, row = warp_row + lane / 4;
        float s[kBlocks][4];
        device::wait(&barriers.queries[place], parity);
        device::wait(&barriers.keys, 0);
        device::fence_products();
        issue_scores<T, S>(s, queries + place * (S::kQueryBytes / 16), keys);
        device::wait_for_products<0>();
        device::pin(s);
        __syncthreads();  // these queries are read
        if (threadIdx.x == 0 && tile + 2 * parts < tiles) load_queries(place, tile + 2 * parts);
        RunningSoftmax softmax;
        if (warp_row < a.queries) {
            if constexpr (!kPlain) {
                MaskRows const masks = mask_rows<T>(a, batch, head, row);
                scale_scores(s, a);
                add_mask<T, true>(s, a, masks, lane % 4 * 2);
                add_slopes(s, a, masks, lane % 4 * 2);
            }
            KeyRange const seen[2] = {keys_of_row(a, row), keys_of_row(a, row + 8)};
            hide_in_blocks(s, seen, keys_of_all(a, warp_row, warp_row + 15), lane % 4 * 2);
            softmax.template update<kPlain>(s, log2_scale);
        }
        uint32_t p[kBlocks / 2][4];
        pack_weights<T>(p, s);
        float out[S::kSize / 8][4];
        clear(out);
        device::wait(&barriers.values, 0);
        device::fence_products();
        issue_results<T, S>(out, p, values);
        device::wait_for_products<0>();
        device::pin(out);
        store_results<T, S::kSize>(a, head_of<T>(a.y, batch, head), row, out, softmax);
        parity ^= place;
        place ^= 1;
    }
}

// ---- launchers

template <class T, class S, bool kPlain>
cudaError_t launch_whole(Attention const& a, cudaStream_t stream) {
    AttentionMaps maps;
    device::Machine machine;
    if (cudaError_t const status = device::current_machine(machine)) return status;
    if (!map_attention(maps, a, std::is_same_v<T, __half>, S::kRows, S::kKeys))
        return cudaErrorNotSupported;
    int64_t const heads = a.batch * a.heads, slots = machine.multiprocessors * S::kResident;
    int const tiles = (a.queries + S::kRows - 1) / S::kRows;
    int const parts = static_cast<int>(std::clamp<int64_t>(slots / heads, 1, tiles));
    if (heads * parts > INT32_MAX) return cudaErrorNotSupported;
    device::Grid const grid{heads * parts, dim3(S::kThreads), 1, S::kSharedBytes};
#ifndef NO_CARVE
    if (cudaError_t const status = prefer_shared(whole_kernel<T, S, kPlain>)) return status;
#endif
    return device::launch(whole_kernel<T, S, kPlain>, device::kInOrder, grid, stream, a, tiles,
                          parts, maps);
}

}  // namespace opfuse
