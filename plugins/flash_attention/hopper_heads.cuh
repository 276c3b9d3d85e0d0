// The same on Hopper for so few keys that all scores of a row fit into registers, and as few
// queries: blocks stay on their multiprocessor and take one head after another, whose queries,
// keys, and values are loaded once, while those of the head before are multiplied.
#pragma once
#include "../device/launch.cuh"
#include "hopper_parts.cuh"

namespace opfuse {

// ---- kernels

// kSize: the head sizes rounded up to an instance.  Scores are computed in two parts, of which one
// is multiplied while the other is weighed.
template <int kSize_, int kFirst_, int kSecond_>
struct HeadsShape {
    static constexpr int kSize = kSize_, kFirst = kFirst_, kSecond = kSecond_;  // keys
    static constexpr int kKeys = kFirst + kSecond;
    static constexpr int kGroups = 2, kTiles = 2 * kGroups;  // of 64 queries
    static constexpr int kStages = 2;                        // heads in shared memory
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

// The largest of the scores of two rows so far.
template <int kBlocks>
__device__ void raise(float (&top)[2], float const (&s)[kBlocks][4]) {
#pragma unroll
    for (int r = 0; r < 2; ++r)
#pragma unroll
        for (int i = 0; i < kBlocks; ++i)
            top[r] = fmaxf(top[r], fmaxf(s[i][2 * r], s[i][2 * r + 1]));
}

// Scores to weights; adds them up.
template <int kBlocks>
__device__ void weigh_part(float (&sum)[2], float (&s)[kBlocks][4], float const (&shift)[2],
                           float log2_scale) {
#pragma unroll
    for (int i = 0; i < kBlocks; ++i)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            s[i][e] = device::exp2_fast(fmaf(s[i][e], log2_scale, -shift[e / 2]));
            sum[e / 2] += s[i][e];
        }
}

// A warp group: 64 queries at a time, two tiles of each unit.
template <class T, class S>
struct HeadsConsumer {
    Attention const& a;
    HeadsBarriers<S>& barriers;
    uint32_t base;  // of the stages, in shared memory
    int group, lane;

    float first[S::kFirst / 8][4], second[S::kSecond / 8][4];  // scores
    float out[S::kSize / 8][4];
    RunningSoftmax softmax;

    __device__ static uint64_t boxes(uint32_t address, int rows) {
        return device::describe_box(address, rows * device::kBoxBytes);
    }
    __device__ int row_of(HeadUnit const& unit, int tile) const {
        return unit.first_row + 64 * tile + threadIdx.x / 32 % 4 * 16;  // the warp's first
    }
    __device__ void release(uint32_t stage) const {
        if (lane == 0) device::arrive(&barriers.empty[stage]);
    }
    __device__ void store(HeadUnit const& unit, int tile) const {
        store_results<T, S::kSize>(a, head_of<T>(a.y, unit.batch, unit.head),
                                   row_of(unit, tile) + lane / 4, out, softmax);
    }

    __device__ void run(HeadOrder const& order) {
        uint32_t step = 0;
        for (int i = blockIdx.x; i < order.units; i += gridDim.x, ++step) {
            HeadUnit const unit(a, i, order.parts, order.most);
            uint32_t const stage = step % S::kStages, parity = step / S::kStages & 1;
            uint32_t const k = base + stage * S::kStageBytes, v = k + S::kTileBytes;
            uint32_t const q = v + S::kTileBytes;
            // The last tile, which has the fewest queries, is another group's in the next unit.
            int const own = (group + step) % S::kGroups, next = own + S::kGroups;
            if (own >= unit.tiles) {
                release(stage);
                continue;
            }
            uint64_t const keys = boxes(k, S::kKeys), values = boxes(v, S::kKeys);
            constexpr int kSkip = S::kFirst * device::kBoxBytes / 16;
            auto const queries = [&](int tile) {
                return boxes(q + tile * S::kQueryBytes, S::kRows);
            };
            uint32_t p[S::kFirst / 16][4], p2[S::kSecond / 16][4];

            device::wait(&barriers.scores_full[stage], parity);
            device::fence_products();
            issue_scores<T, S>(first, queries(own), keys);
            issue_scores<T, S>(second, queries(own), keys + kSkip);
#pragma unroll
            for (int turn = 0; turn < 2; ++turn) {
                int const row = row_of(unit, turn == 0 ? own : next);
                bool const any = row < a.queries && (turn == 0 || next < unit.tiles);
                KeyRange const all_see = keys_of_all(a, row, row + 15);
                float top[2] = {-INFINITY, -INFINITY}, shift[2], sum[2] = {0.f, 0.f};
                if (turn == 0)
                    device::wait_for_products<1>();
                else
                    device::wait_for_products<2>();  // first, and its results of before
                device::pin(first);
                if (any) {
                    hide_ends(first, a, row + lane / 4, all_see, 0, lane % 4 * 2);
                    raise(top, first);
                }
                if (turn == 1) {
                    device::wait_for_products<1>();
                    device::pin(out);
                    store(unit, own);
                }
                device::wait_for_products<0>();
                device::pin(second);
                float const log2_scale = a.scale * kLog2E;
                if (any) {
                    hide_ends(second, a, row + lane / 4, all_see, S::kFirst, lane % 4 * 2);
                    raise(top, second);
#pragma unroll
                    for (int r = 0; r < 2; ++r) {
                        top[r] = fmaxf(top[r], __shfl_xor_sync(0xffffffffu, top[r], 1));
                        top[r] = fmaxf(top[r], __shfl_xor_sync(0xffffffffu, top[r], 2));
                        shift[r] = top[r] == -INFINITY ? 0.f : top[r] * log2_scale;
                    }
                    weigh_part(sum, first, shift, log2_scale);
                }
                pack_weights<T>(p, first);
                clear(out);
                if (turn == 0) device::wait(&barriers.values_full[stage], parity);
                device::fence_products();
                issue_results<T, S>(out, p, values);
                if (turn == 0) issue_scores<T, S>(first, queries(next), keys);
                if (any) weigh_part(sum, second, shift, log2_scale);
                pack_weights<T>(p2, second);
                device::fence_products();
                issue_results<T, S>(out, p2, values + kSkip);
                if (turn == 0) issue_scores<T, S>(second, queries(next), keys + kSkip);
                softmax.max[0] = top[0], softmax.max[1] = top[1];
                softmax.sum[0] = sum[0], softmax.sum[1] = sum[1];
            }
            device::wait_for_products<0>();
            device::pin(out);
            release(stage);
            if (next < unit.tiles) store(unit, next);
        }
    }
};

template <class T, class S>
__global__ void __launch_bounds__(S::kThreads, 1)
    heads_kernel(Attention const a, HeadOrder const order,
                 __grid_constant__ AttentionMaps const maps) {
    extern __shared__ __align__(16) unsigned char shared[];
    unsigned char* const stages = shared + (1024 - device::shared_address(shared) % 1024) % 1024;
    auto& barriers = *reinterpret_cast<HeadsBarriers<S>*>(stages + S::kStages * S::kStageBytes);
    if (threadIdx.x == 0) barriers.init();
    __syncthreads();
    int const group = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x / 128), 0);
    if (group == S::kGroups) {
        device::leave_registers<24>();
        if (threadIdx.x == 128 * S::kGroups) load_heads<S>(a, order, maps, barriers, stages);
    } else {
        device::take_registers<240>();
        HeadsConsumer<T, S>{a, barriers, device::shared_address(stages), group,
                            static_cast<int>(threadIdx.x % 32)}
            .run(order);
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
    return device::launch(heads_kernel<T, S>, device::kInOrder, grid, stream, a, order, maps);
}

}  // namespace opfuse
