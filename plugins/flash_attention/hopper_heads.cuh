// The same on Hopper for so few keys that all scores of a row fit into registers, and as few
// queries: blocks stay on their multiprocessor and take one head after another, whose queries,
// keys, and values are loaded once, while those of the head before are multiplied.  Each batch has
// all keys.
#pragma once
#include "../device/launch.cuh"
#include "hopper_parts.cuh"

namespace opfuse {

// ---- kernels

// kSize: the head sizes rounded up to an instance; kFirst, kSecond: keys of the two parts in which
// scores are computed.
template <int kSize_, int kFirst_, int kSecond_>
struct HeadsShape {
    static constexpr int kSize = kSize_, kFirst = kFirst_, kSecond = kSecond_;  // keys
    static constexpr int kKeys = kFirst + kSecond;
    static constexpr int kGroups = 3, kTiles = 4;  // of 64 queries
    static constexpr int kStages = 2;              // heads in shared memory
    static constexpr int kThreads = 128 * (kGroups + 1), kRows = 64;
    static constexpr int kTileBytes = kKeys * boxes_of(kSize) * device::kBoxBytes;
    static constexpr int kQueryBytes = kRows * boxes_of(kSize) * device::kBoxBytes;
    static constexpr int kStageBytes = 2 * kTileBytes + kTiles * kQueryBytes;
    static constexpr int kSharedBytes = kStages * kStageBytes + 1024 + 128;
};

template <class S>
struct HeadsBarriers {
    uint64_t scores_full[S::kStages], values_full[S::kStages], empty[S::kStages];

    __device__ void init() {
        for (int i = 0; i < S::kStages; ++i) {
            device::init_barrier(&scores_full[i], 1);
            device::init_barrier(&values_full[i], 1);
            device::init_barrier(&empty[i], 4 * S::kGroups);  // warps
        }
        device::publish_barriers();
    }
};

// A head, or a part of its queries.
struct HeadUnit {
    int batch, head, kv_head;
    int first_row, tiles;

    __device__ HeadUnit(Attention const& a, int index, int parts, int most) {
        int const head_index = index / parts, part = index % parts;
        batch = head_index / a.heads, head = head_index % a.heads;
        kv_head = head / (a.heads / a.kv_heads);
        first_row = part * most * 64;
        tiles = min(most, (a.queries - first_row + 63) / 64);
    }
};

// How the heads are shared out: each into `parts` of up to `most` tiles of queries.
struct HeadOrder {
    int units, parts, most;
};

template <class S>
__device__ void load_heads(Attention const& a, HeadOrder const& order, AttentionMaps const& maps,
                           HeadsBarriers<S>& barriers, unsigned char* stages) {
    uint32_t step = 0;
    for (int i = blockIdx.x; i < order.units; i += gridDim.x, ++step) {
        HeadUnit const unit(a, i, order.parts, order.most);
        int const stage = step % S::kStages;
        unsigned char* const k = stages + stage * S::kStageBytes;
        unsigned char* const v = k + S::kTileBytes;
        device::wait(&barriers.empty[stage], ~(step / S::kStages) & 1);
        device::arrive_expecting(&barriers.scores_full[stage],
                                 S::kTileBytes + unit.tiles * S::kQueryBytes);
        copy_rows_of<S>(k, maps.k, &barriers.scores_full[stage], S::kKeys, 0, unit.kv_head,
                        unit.batch);
        for (int tile = 0; tile < unit.tiles; ++tile)
            copy_rows_of<S>(v + S::kTileBytes + tile * S::kQueryBytes, maps.q,
                            &barriers.scores_full[stage], S::kRows, unit.first_row + 64 * tile,
                            unit.head, unit.batch);
        load_rows<S>(v, maps.v, &barriers.values_full[stage], S::kKeys, 0, unit.kv_head,
                     unit.batch);
    }
}

// The tiles that a warp group takes: every third of each unit, so that the last one, which has the
// fewest queries, is another group's in the next unit.
template <class S>
struct TileCursor {
    Attention const& a;
    HeadOrder const& order;
    int index = blockIdx.x;  // of the unit
    uint32_t step = 0;
    int first;  // tile of this unit
    HeadUnit unit;
    int tile;

    __device__ TileCursor(Attention const& a, HeadOrder const& order, int group)
        : a(a), order(order), first(group), unit(a, index, order.parts, order.most), tile(group) {}

    __device__ bool in_unit() const { return tile < unit.tiles; }
    __device__ bool next_unit() {
        index += gridDim.x, ++step;
        if (index >= order.units) return false;
        unit = HeadUnit(a, index, order.parts, order.most);
        tile = first = first == 0 ? S::kGroups - 1 : first - 1;
        return true;
    }
    __device__ int row() const { return unit.first_row + 64 * tile + threadIdx.x / 32 % 4 * 16; }
};

// A warp group: 64 queries at a time, and two parts of the keys.  The second scores are computed
// with the first results.
template <class T, class S>
struct HeadsConsumer {
    Attention const& a;
    HeadsBarriers<S>& barriers;
    uint32_t base;  // of the stages, in shared memory
    int lane;
    TileCursor<S> at;

    static constexpr int kSkip = S::kFirst * device::kBoxBytes / 16;  // to the second part
    using First = float[S::kFirst / 8][4];                            // scores
    using Second = float[S::kSecond / 8][4];

    __device__ uint32_t stage() const { return at.step % S::kStages; }
    __device__ uint32_t parity() const { return at.step / S::kStages & 1; }
    __device__ uint32_t address() const { return base + stage() * S::kStageBytes; }
    __device__ uint64_t keys() const {
        return device::describe_box(address(), S::kKeys * device::kBoxBytes);
    }
    __device__ uint64_t values() const { return keys() + S::kTileBytes / 16; }
    __device__ uint64_t queries() const {
        return device::describe_box(address() + 2 * S::kTileBytes + at.tile * S::kQueryBytes,
                                    S::kRows * device::kBoxBytes);
    }
    __device__ void release() const {
        if (lane == 0) device::arrive(&barriers.empty[stage()]);
    }
    // The next tile of this group, if there is one; leaves the unit that has none, once it is
    // there: a group that is two units ahead would else leave the wrong one.
    __device__ bool next() {
        at.tile += S::kGroups;
        while (!at.in_unit()) {
            device::wait(&barriers.scores_full[stage()], parity());
            release();
            if (!at.next_unit()) return false;
        }
        return true;
    }
    __device__ void issue_first(First& first) const {
        device::wait(&barriers.scores_full[stage()], parity());
        device::fence_products();
        issue_scores<T, S>(first, queries(), keys());
    }
    // Scores of the keys from `begin` on to weights; gives what earlier results are scaled by.
    template <int kBlocks>
    __device__ float2 weigh(float (&s)[kBlocks][4], RunningSoftmax& softmax, int begin) const {
        int const row = at.row();
        if (row >= a.queries) return {1.f, 1.f};
        hide_ends(s, a, row + lane / 4, keys_of_all(a, AllKeys{}, row, row + 15), begin,
                  lane % 4 * 2);
        return softmax.template update<true>(s, a.scale * kLog2E);
    }

    __device__ void run() {
        bool more = at.in_unit() || next();
        while (more) {
            First first;
            Second second;
            issue_first(first);
            float out[S::kSize / 8][4];
            uint32_t p[S::kFirst / 16][4], p2[S::kSecond / 16][4];
            RunningSoftmax softmax;
            device::wait_for_products<0>();
            device::pin(first);
            weigh(first, softmax, 0);
            pack_weights<T>(p, first);
            device::wait(&barriers.values_full[stage()], parity());
            device::fence_products();
            issue_scores<T, S>(second, queries(), keys() + kSkip);
            issue_results<T, S, false>(out, p, values());
            device::wait_for_products<1>();
            device::pin(second);
            float2 const correction = weigh(second, softmax, S::kFirst);
            device::pin(second);
            device::wait_for_products<0>();
            device::pin(out);
            scale_rows(out, correction);
            pack_weights<T>(p2, second);
            device::fence_products();
            issue_results<T, S, true>(out, p2, values() + kSkip);
            T* const y = head_of<T>(a.y, at.unit.batch, at.unit.head);
            int const row = at.row() + lane / 4;
            device::wait_for_products<0>();
            device::pin(out);
            more = next();
            store_results<T, S::kSize>(a, y, row, out, softmax);
        }
    }
};

// Asks for what this block multiplies first to be in L2; for a second head too it would take 22.4
// us of a ViT, not 20.5 (22.5 without).
template <class S>
__device__ void prefetch_first(Attention const& a, HeadOrder const& order,
                               AttentionMaps const& maps) {
    if (blockIdx.x >= order.units) return;
    HeadUnit const unit(a, blockIdx.x, order.parts, order.most);
    device::prefetch_box(maps.k, 0, 0, unit.kv_head, unit.batch);
    for (int tile = 0; tile < unit.tiles; ++tile)
        device::prefetch_box(maps.q, 0, unit.first_row + 64 * tile, unit.head, unit.batch);
    device::prefetch_box(maps.v, 0, 0, unit.kv_head, unit.batch);
}

template <class T, class S>
__global__ void __launch_bounds__(S::kThreads, 1)
    heads_kernel(Attention const a, HeadOrder const order,
                 __grid_constant__ AttentionMaps const maps) {
    extern __shared__ __align__(16) unsigned char shared[];
    unsigned char* const stages = shared + (1024 - device::shared_address(shared) % 1024) % 1024;
    auto& barriers = *reinterpret_cast<HeadsBarriers<S>*>(stages + S::kStages * S::kStageBytes);
    if (threadIdx.x == 0) barriers.init();
    if (threadIdx.x == 128 * S::kGroups) {
        prefetch_maps(maps);
        prefetch_first<S>(a, order, maps);
    }
    __syncthreads();
    device::wait_in_turn();
    int const group = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x / 128), 0);
    if (group == S::kGroups) {
        device::leave_registers<32>();
        if (threadIdx.x == 128 * S::kGroups) load_heads<S>(a, order, maps, barriers, stages);
    } else {
        device::take_registers<160>();
        HeadsConsumer<T, S>{a, barriers, device::shared_address(stages),
                            static_cast<int>(threadIdx.x % 32), TileCursor<S>(a, order, group)}
            .run();
    }
}

// ---- launchers

// Whole heads, or parts of them where there are fewer heads than multiprocessors.
template <class T, class S>
cudaError_t launch_heads(Attention const& a, cudaStream_t stream) {
    AttentionMaps maps;
    device::Machine machine;
    if (cudaError_t const status = device::current_machine(machine)) return status;
    if (!map_attention(maps, a, std::is_same_v<T, __half>, S::kRows, S::kKeys))
        return cudaErrorNotSupported;
    int64_t const heads = a.batch * a.heads;
    int const tiles = (a.queries + S::kRows - 1) / S::kRows;
    int most = std::min(tiles, S::kTiles);
    auto const parts = [&] { return (tiles + most - 1) / most; };
    while (most > 1 && heads * parts() < machine.multiprocessors) most = (most + 1) / 2;
    if (heads * parts() > INT32_MAX / 2) return cudaErrorNotSupported;
    HeadOrder const order{static_cast<int>(heads) * parts(), parts(), most};
    device::Grid const grid{std::min(order.units, machine.multiprocessors), dim3(S::kThreads), 1,
                            S::kSharedBytes};
    return device::launch(heads_kernel<T, S>, machine, grid, stream, a, order, maps);
}

}  // namespace opfuse
