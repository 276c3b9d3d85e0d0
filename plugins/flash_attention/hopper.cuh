// y = softmax(scale q k^T + mask) v for many queries on Hopper: TMA, wgmma, warp specialisation
// (after Shah et al. 2024, FlashAttention-3).
//
// A block stays on its multiprocessor and takes tiles of 128 queries.  One warp asks the copy
// engine for queries, keys, and values; two warp groups have 64 queries each.  A group issues the
// product for the next scores before that of the present weights with their values, so that it
// computes a softmax while the tensor cores multiply; the next scores may be the next tile's, so
// that short rows leave no gaps.  The groups take turns at issuing: the one's softmax falls into
// the other's products.
#pragma once
#include "../device/wgmma.cuh"
#include "hopper_tiles.cuh"
#include "prefill.cuh"

namespace opfuse {

// ---- kernels

// s = q k^T; one group of products.
template <class T, class S>
__device__ void issue_scores(float (&s)[S::kKeys / 8][4], uint64_t q, uint64_t k) {
#pragma unroll
    for (int step = 0; step < S::kSize / 16; ++step) {
        int const box = step / 4, inside = step % 4 * 32 / 16;  // of 32 bytes, in units of 16
        device::multiply_shared<T>(s, q + box * S::kRows * device::kBoxBytes / 16 + inside,
                                   k + box * S::kKeys * device::kBoxBytes / 16 + inside, step > 0);
    }
    device::commit_products();
}

// out += p v; one group of products.
template <class T, class S>
__device__ void issue_results(float (&out)[S::kSize / 8][4], uint32_t const (&p)[S::kKeys / 16][4],
                              uint64_t v) {
#pragma unroll
    for (int step = 0; step < S::kKeys / 16; ++step)
        device::multiply_registers<T>(out, p[step], v + step * 16 * device::kBoxBytes / 16);
    device::commit_products();
}

template <class T, int kSteps>
__device__ void pack_weights(uint32_t (&p)[kSteps][4], float const (&s)[2 * kSteps][4]) {
#pragma unroll
    for (int step = 0; step < kSteps; ++step)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            float const(&from)[4] = s[2 * step + i / 2];
            p[step][i] = device::pack<T>(from[i % 2 * 2], from[i % 2 * 2 + 1]);
        }
}

// A tile as one lane of a consumer sees it: its rows are `row` and `row` + 8.
struct HopperRows {
    int head_index;
    int row;
    int block;    // of keys, the one that comes next
    int all_see;  // the last key that each of the warp's rows sees
    ScoreRow rows[2];
};

template <class T, int kSize>
__device__ void store_results(Attention const& a, HopperRows const& tile,
                              float const (&out)[kSize / 8][4], RunningSoftmax softmax) {
    softmax.finish();
    T* const y =
        static_cast<T*>(a.y) + static_cast<int64_t>(tile.head_index) * a.queries * a.value_size;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        if (tile.row + 8 * r >= a.queries) continue;
        float const sum = softmax.sum[r];
        T* const y_row = y + static_cast<int64_t>(tile.row + 8 * r) * a.value_size;
#pragma unroll
        for (int i = 0; i < kSize / 8; ++i)
            store_pair(y_row, 8 * i + threadIdx.x % 4 * 2, a.value_size, a.y_in_pairs,
                       normalised(out[i][2 * r], sum, a.nan_guard),
                       normalised(out[i][2 * r + 1], sum, a.nan_guard));
    }
}

template <int kBlocks>
__device__ void clear(float (&out)[kBlocks][4]) {
#pragma unroll
    for (int i = 0; i < kBlocks; ++i)
#pragma unroll
        for (int e = 0; e < 4; ++e) out[i][e] = 0.f;
}

// The mask of a tile's scores in halves, on its way from memory while they are computed.
template <class T, int kBlocks>
struct EarlyMask {
    device::Vec<T, 2> pairs[2][kBlocks];

    __device__ void fetch(Attention const& a, ScoreRow const (&row)[2], int key) {
        if (!a.mask.data || a.mask.is_float) return;
        bool const differ = masks_differ(row);
#pragma unroll
        for (int i = 0; i < kBlocks; ++i) {
            pairs[0][i] = mask_pair<T>(a, row[0].mask_start, key + 8 * i);
            pairs[1][i] = differ ? mask_pair<T>(a, row[1].mask_start, key + 8 * i) : pairs[0][i];
        }
    }
    __device__ void add(float (&s)[kBlocks][4], Attention const& a, ScoreRow const (&row)[2],
                        int key) const {
        if (!a.mask.data) return;
        if (a.mask.is_float)
            return add_mask(s, row, key,
                            [&](int64_t start, int at) { return mask_pair<float>(a, start, at); });
#pragma unroll
        for (int i = 0; i < kBlocks; ++i)
#pragma unroll
            for (int e = 0; e < 4; ++e) s[i][e] += device::to_float(pairs[e / 2][i].at[e % 2]);
    }
};

// The same, read when it is needed: for head sizes whose results leave no registers.
template <class T, int kBlocks>
struct LateMask {
    __device__ void fetch(Attention const&, ScoreRow const (&)[2], int) {}
    __device__ void add(float (&s)[kBlocks][4], Attention const& a, ScoreRow const (&row)[2],
                        int key) const {
        add_mask<T, true>(s, a, row, key);
    }
};

template <int kBlocks>
struct NoMask {
    __device__ void fetch(Attention const&, ScoreRow const (&)[2], int) {}
    __device__ void add(float (&)[kBlocks][4], Attention const&, ScoreRow const (&)[2], int) const {
    }
};

// A consumer: warp group `group` has 64 rows of each tile.
template <class T, class S, bool kPlain>
struct HopperConsumer {
    static constexpr int kBlocks = S::kKeys / 8;  // of scores, in registers
    static constexpr int kTurnThreads = 256;      // of the group that gives its turn and the next
    using Mask = std::conditional_t<
        kPlain, NoMask<kBlocks>,
        std::conditional_t<S::kSize <= 64, EarlyMask<T, kBlocks>, LateMask<T, kBlocks>>>;

    Attention const& a;
    HopperBarriers<S>& barriers;
    uint64_t queries, keys, values;  // descriptions of boxes; of the first stage
    int group, lane, warp_row;
    uint32_t tiles = 0, steps = 0;  // begun; a step is a block of keys, and values are one behind

    __device__ HopperConsumer(Attention const& a, HopperBarriers<S>& barriers, unsigned char* q,
                              unsigned char* k, unsigned char* v, int group)
        : a(a),
          barriers(barriers),
          queries(device::describe_box(device::shared_address(q + group * 64 * device::kBoxBytes),
                                       S::kRows * device::kBoxBytes)),
          keys(device::describe_box(device::shared_address(k), S::kKeys * device::kBoxBytes)),
          values(device::describe_box(device::shared_address(v), S::kKeys * device::kBoxBytes)),
          group(group),
          lane(threadIdx.x % 32),
          warp_row(group * 64 + threadIdx.x / 32 % 4 * 16) {
        if (group == S::kGroups - 1) give_turn();  // group 0 goes first
    }

    __device__ static int stage(uint32_t step) { return step % S::kStages; }
    __device__ static void wait_for(uint64_t (&full)[S::kStages], uint32_t step) {
        device::wait(&full[stage(step)], step / S::kStages & 1);
    }
    __device__ void wait_for_queries() const {
        device::wait(&barriers.query_full[tiles % S::kTiles], tiles / S::kTiles & 1);
    }
    // Named barrier 1 + group says that it is this group's turn.
    __device__ void give_turn() const {
        device::arrive_to_meet(1 + (group + 1) % S::kGroups, kTurnThreads);
    }
    __device__ int first_key(HopperRows const& tile) const {
        return tile.block * S::kKeys + lane % 4 * 2;
    }
    __device__ void release(uint64_t* barrier) const {
        if (lane == 0) device::arrive(barrier);
    }

    // The next tile that has keys; those that have none are written at once.
    __device__ bool next(TileWalk<S>& walk, HopperRows& rows) const {
        HopperTile tile;
        while (walk.next(tile)) {
            int const batch = tile.head_index / a.heads, head = tile.head_index % a.heads;
            rows.head_index = tile.head_index;
            rows.row = tile.first_row + warp_row + lane / 4;
            rows.block = tile.blocks - 1;
            rows.rows[0] = score_row(a, batch, head, rows.row);
            rows.rows[1] = score_row(a, batch, head, rows.row + 8);
            rows.all_see = a.keys - 1;
            if (a.causal)
                rows.all_see = min(rows.all_see, tile.first_row + warp_row + a.keys - a.queries);
            if (tile.blocks > 0) return true;
            float const none[S::kSize / 8][4] = {};
            store_results<T, S::kSize>(a, rows, none, RunningSoftmax{});
        }
        return false;
    }

    __device__ void issue_scores_of(float (&s)[kBlocks][4]) const {
        issue_scores<T, S>(s, queries + tiles % S::kTiles * (S::kQueryBytes / 16),
                           keys + stage(steps) * (S::kTileBytes / 16));
    }
    __device__ void issue_results_of(float (&out)[S::kSize / 8][4],
                                     uint32_t const (&p)[kBlocks / 2][4], uint32_t step) const {
        wait_for(barriers.value_full, step);
        device::fence_products();
        issue_results<T, S>(out, p, values + stage(step) * (S::kTileBytes / 16));
    }
    // What the scores were computed from is read.
    __device__ void release_scores(HopperRows const& tile) const {
        release(&barriers.key_empty[stage(steps)]);
        if (tile.block == 0) release(&barriers.query_empty[tiles % S::kTiles]);
    }

    // Scores to weights; gives what earlier results are to be scaled by.
    __device__ float2 weigh(float (&s)[kBlocks][4], RunningSoftmax& softmax, HopperRows const& tile,
                            Mask const& mask) const {
        if constexpr (!kPlain) {
            scale_scores(s, a);
            mask.add(s, a, tile.rows, first_key(tile));
        }
        if ((tile.block + 1) * S::kKeys - 1 > tile.all_see)
            hide_scores(s, tile.rows, first_key(tile));
        return softmax.template update<kPlain>(s, kPlain ? a.scale * kLog2E : kLog2E);
    }

    __device__ void run(TileWalk<S> walk) {
        HopperRows tile, done;
        if (!next(walk, tile)) return;
        float out[S::kSize / 8][4];
        clear(out);
        float s[kBlocks][4];
        uint32_t p[kBlocks / 2][4];
        RunningSoftmax softmax;
        wait_for_queries();
        wait_for(barriers.key_full, steps);
        device::fence_products();
        issue_scores_of(s);
        Mask mask;
        mask.fetch(a, tile.rows, first_key(tile));
        device::wait_for_products<0>();
        device::pin(s);
        release_scores(tile);
        weigh(s, softmax, tile, mask);
        pack_weights<T>(p, s);
        for (;;) {
            bool const fresh = tile.block-- == 0;  // the next scores are another tile's
            if (fresh) {
                done = tile;
                if (!next(walk, tile)) break;
                ++tiles;
                wait_for_queries();
            }
            ++steps;
            wait_for(barriers.key_full, steps);
            device::meet(1 + group, kTurnThreads);
            device::fence_products();
            issue_scores_of(s);
            issue_results_of(out, p, steps - 1);
            give_turn();
            mask.fetch(a, tile.rows, first_key(tile));  // travels while the tensor cores multiply
            device::wait_for_products<1>();
            device::pin(s);
            release_scores(tile);
            RunningSoftmax const before = softmax;
            if (fresh) softmax = RunningSoftmax{};
            float2 const correction = weigh(s, softmax, tile, mask);
            device::pin(s);  // the softmax comes before the wait
            // Long over: but ptxas moves no wait for products across its loop, as it else does.
            wait_for(barriers.value_full, steps - 1);
            device::wait_for_products<0>();
            device::pin(out);
            release(&barriers.value_empty[stage(steps - 1)]);
            if (fresh) {
                store_results<T, S::kSize>(a, done, out, before);
                clear(out);
            } else {
                scale_rows(out, correction);
            }
            pack_weights<T>(p, s);
        }
        issue_results_of(out, p, steps);
        device::wait_for_products<0>();
        device::pin(out);
        store_results<T, S::kSize>(a, done, out, softmax);
    }
};

template <class T, class S, bool kPlain>
__global__ void __launch_bounds__(S::kThreads, 1)
    hopper_kernel(Attention const a, TileOrder const order,
                  __grid_constant__ AttentionMaps const maps) {
    extern __shared__ __align__(16) unsigned char shared[];
    unsigned char* const q = shared + (1024 - device::shared_address(shared) % 1024) % 1024;
    unsigned char* const k = q + S::kTiles * S::kQueryBytes;
    unsigned char* const v = k + S::kStages * S::kTileBytes;
    auto& barriers = *reinterpret_cast<HopperBarriers<S>*>(v + S::kStages * S::kTileBytes);
    if (threadIdx.x == 0) barriers.init();
    __syncthreads();
    // Through a shuffle, so that the compiler knows that it is the same for all lanes.
    int const group = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x / 128) - 1, 0);
    TileWalk<S> const walk(a, order);
    if (group < 0) {
        device::leave_registers<S::kProducerRegisters>();
        if (threadIdx.x == 0) HopperProducer<S>{a, maps, barriers, q, k, v}.run(walk);
    } else {
        device::take_registers<S::kRegisters>();
        HopperConsumer<T, S, kPlain>(a, barriers, q, k, v, group).run(walk);
    }
}

// ---- launchers

template <class T, class S, bool kPlain>
cudaError_t launch_hopper(Attention const& a, AttentionMaps const& maps, cudaStream_t stream) {
    auto const kernel = hopper_kernel<T, S, kPlain>;
    int device = 0, processors = 0;
    cudaError_t status =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, S::kSharedBytes);
    if (!status) status = cudaGetDevice(&device);
    if (!status)
        status = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
    if (status) return status;
    int64_t const tiles = a.batch * a.heads * ((a.queries + S::kRows - 1) / S::kRows);
    if (tiles > INT32_MAX / 4) return cudaErrorNotSupported;
    int const blocks = static_cast<int>(std::min<int64_t>(processors, tiles));
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(S::kThreads);
    config.dynamicSmemBytes = S::kSharedBytes;
    config.stream = stream;
    return cudaLaunchKernelEx(&config, kernel, a, order_tiles<S>(a, blocks), maps);
}

template <class T, int kSize>
cudaError_t launch_hopper(Attention const& a, cudaStream_t stream) {
    using S = HopperShape<kSize>;
    AttentionMaps maps;
    if (!map_attention(maps, a, std::is_same_v<T, __half>, S::kRows, S::kKeys))
        return cudaErrorNotSupported;
    bool const plain = !a.mask.data && !(a.softcap > 0.f) && a.scale > 0.f;
    return plain ? launch_hopper<T, S, true>(a, maps, stream)
                 : launch_hopper<T, S, false>(a, maps, stream);
}

}  // namespace opfuse
