// The same on Hopper for few keys, and for scores that are more than scaled: small tiles of which a
// multiprocessor has several, so that one's softmax falls into another's products and copies.
#pragma once
#include <cfloat>

#include "../device/launch.cuh"
#include "hopper_parts.cuh"

namespace opfuse {

// ---- kernels

// kSize: the head sizes rounded up to an instance; kGroups: of 128 threads, each of which has 64
// queries; kStages: of keys, and of values, in shared memory; kResident: blocks that share a
// multiprocessor.
template <int kSize_, int kGroups_, int kStages_, int kResident_, bool kAhead_ = true>
struct ShortShape {
    static constexpr int kSize = kSize_, kGroups = kGroups_, kKeys = 64;
    static constexpr int kStages = kStages_, kResident = kResident_;
    static constexpr bool kAhead = kAhead_;
    static constexpr int kThreads = 128 * kGroups, kRows = 64 * kGroups;
    static constexpr int kTileBytes =
        kKeys * boxes_of(kSize) * device::kBoxBytes;  // of keys or values
    static constexpr int kQueryBytes = kRows * boxes_of(kSize) * device::kBoxBytes;
    // 1024 more to align the tiles, and the barriers.
    static constexpr int kSharedBytes = kQueryBytes + 2 * kStages * kTileBytes + 1024 + 128;
};

template <class S>
struct ShortBarriers {
    uint64_t queries, keys[S::kStages], values[S::kStages];  // hold what was asked for

    __device__ void init() {
        device::init_barrier(&queries, 1);
        for (int i = 0; i < S::kStages; ++i) {
            device::init_barrier(&keys[i], 1);
            device::init_barrier(&values[i], 1);
        }
        device::publish_barriers();
    }
};

// One tile of queries, whose keys pass by from the last block to the first.
template <class T, class S, Scores kScores>
struct ShortTile {
    static constexpr int kBlocks = S::kKeys / 8;  // of scores, in registers
    static constexpr bool kCounts = kScores == Scores::kCounted;
    using Mask =
        std::conditional_t<kScores == Scores::kAny, EarlyMask<T, kBlocks>, NoMask<kBlocks>>;

    Attention const& a;
    AttentionMaps const& maps;
    ShortBarriers<S>& barriers;
    unsigned char *q, *k, *v;
    int batch, head, kv_head, first_row;
    int begin, end;         // of the blocks of keys that any row sees
    float const* key_mask;  // shared; in powers of two

    // Of the block that comes as number `step`: the last one first, unless they may be cut short.
    __device__ int row_of(int step) const {
        return (kScores == Scores::kKeyMask ? begin + step : end - 1 - step) * S::kKeys;
    }

    // The first thread asks for keys and values.
    __device__ void load(int step) const {
        int const stage = step % S::kStages, row = row_of(step);
        load_rows<S>(k + stage * S::kTileBytes, maps.k, &barriers.keys[stage], S::kKeys, row,
                     kv_head, batch);
        load_rows<S>(v + stage * S::kTileBytes, maps.v, &barriers.values[stage], S::kKeys, row,
                     kv_head, batch);
    }
    __device__ void load_first() const {
        load_rows<S>(q, maps.q, &barriers.queries, S::kRows, first_row, head, batch);
#pragma unroll
        for (int i = 0; i < S::kStages; ++i)
            if (i < end - begin) load(i);
    }
    __device__ static void wait_for(uint64_t (&full)[S::kStages], int step) {
        device::wait(&full[step % S::kStages], step / S::kStages & 1);
    }

    __device__ void run() const {
        int const group = threadIdx.x / 128, lane = threadIdx.x % 32, blocks = end - begin;
        int const warp_row = first_row + threadIdx.x / 32 * 16, row = warp_row + lane / 4;
        uint64_t const queries =
            device::describe_box(device::shared_address(q + group * 64 * device::kBoxBytes),
                                 S::kRows * device::kBoxBytes);
        uint64_t const keys =
            device::describe_box(device::shared_address(k), S::kKeys * device::kBoxBytes);
        uint64_t const values =
            device::describe_box(device::shared_address(v), S::kKeys * device::kBoxBytes);
        auto const count = keys_of_batch_if<kCounts>(a, batch);
        KeyRange const all_see = keys_of_all(a, count, warp_row, warp_row + 15);
        MaskRows const masks = mask_rows<T>(a, count, batch, head, row);
        float out[S::kSize / 8][4];
        float s[kBlocks][4];
        uint32_t p[kBlocks / 2][4];
        RunningSoftmax softmax;
        Mask mask;
        clear(out);

        auto const at_stage = [](uint64_t boxes, int step) {
            return boxes + step % S::kStages * (S::kTileBytes / 16);
        };
        auto const first_key = [&](int step) { return row_of(step) + lane % 4 * 2; };
        float const log2_scale = a.scale * kLog2E;
        auto const weigh = [&](int step) {
            if constexpr (kScores == Scores::kKeyMask) {
#pragma unroll
                for (int i = 0; i < kBlocks; ++i) {
                    float2 const own =
                        *reinterpret_cast<float2 const*>(key_mask + first_key(step) + 8 * i);
                    s[i][0] = fmaf(s[i][0], log2_scale, own.x);
                    s[i][1] = fmaf(s[i][1], log2_scale, own.y);
                    s[i][2] = fmaf(s[i][2], log2_scale, own.x);
                    s[i][3] = fmaf(s[i][3], log2_scale, own.y);
                }
            }
            if constexpr (kScores == Scores::kAny) {
                scale_scores(s, a);
                mask.add(s, a, masks, first_key(step));
                add_slopes(s, a, masks, first_key(step));
            }
            int const first = row_of(step);
            if (first < all_see.begin || first + S::kKeys > all_see.end) {
                // Worked out where it is needed, which saves registers.
                auto const again = keys_of_batch_if<kCounts>(a, batch);
                KeyRange const seen[2] = {keys_of_row(a, again, row),
                                          keys_of_row(a, again, row + 8)};
                hide_scores(s, seen, first_key(step));
            }
            if constexpr (kScores == Scores::kScaled || kCounts)
                return softmax.template update<true>(s, log2_scale);
            else
                return softmax.template update<false>(s, kScores == Scores::kAny ? kLog2E : 1.f);
        };
        auto const issue_results_of = [&](int step) {
            wait_for(barriers.values, step);
            device::fence_products();
            issue_results<T, S, true>(out, p, at_stage(values, step));
        };
        auto const make_room = [&](int step) {
            if (blocks > S::kStages) {
                __syncthreads();  // all groups have read the stage of this block
                int const next = step + S::kStages;
                if (threadIdx.x == 0 && next < blocks) load(next);
            }
        };
        if constexpr (!S::kAhead) {
            if (blocks > 0) device::wait(&barriers.queries, 0);
            for (int step = 0; step < blocks; ++step) {
                mask.fetch(a, masks, first_key(step));  // travels while the tensor cores multiply
                wait_for(barriers.keys, step);
                device::fence_products();
                issue_scores<T, S>(s, queries, at_stage(keys, step));
                device::wait_for_products<0>();
                device::pin(s);
                scale_rows(out, weigh(step));
                pack_weights<T>(p, s);
                issue_results_of(step);
                device::wait_for_products<0>();
                device::pin(out);
                make_room(step);
            }
        } else if (blocks > 0) {
            mask.fetch(a, masks, first_key(0));
            device::wait(&barriers.queries, 0);
            wait_for(barriers.keys, 0);
            device::fence_products();
            issue_scores<T, S>(s, queries, keys);
            device::wait_for_products<0>();
            device::pin(s);
            weigh(0);
            pack_weights<T>(p, s);
            for (int step = 1; step < blocks; ++step) {
                mask.fetch(a, masks, first_key(step));  // travels while the tensor cores multiply
                wait_for(barriers.keys, step);
                device::fence_products();
                issue_scores<T, S>(s, queries, at_stage(keys, step));
                issue_results_of(step - 1);
                device::wait_for_products<1>();
                device::pin(s);
                float2 const correction = weigh(step);
                device::pin(s);  // the softmax comes before the wait
                // Long over: but ptxas moves no wait for products across its loop.
                wait_for(barriers.values, step - 1);
                device::wait_for_products<0>();
                device::pin(out);
                make_room(step - 1);
                scale_rows(out, correction);
                pack_weights<T>(p, s);
            }
            issue_results_of(blocks - 1);
            device::wait_for_products<0>();
            device::pin(out);
        }
        store_results<T, S::kSize>(a, head_of<T>(a.y, batch, head), row, out, softmax);
    }
};

// Reads a mask that is the same for all queries: log2(e) times it, and -inf past the end.  Gives
// how many keys are left when those at the end that it hides from every query go; all of them
// where it hides each key, which may mean that all weigh alike.
template <class T, class S>
__device__ int read_key_mask(float* to, Attention const& a, int64_t start) {
    __shared__ int last[S::kThreads / 32];
    int own_last = 0;
    bool any = false;
    for (int i = threadIdx.x; i < (a.keys + S::kKeys - 1) / S::kKeys * S::kKeys; i += S::kThreads) {
        float const given = i < a.keys ? mask_at<T>(a.mask, start, i) : -INFINITY;
        float const own = given == -INFINITY ? given : fmaxf(given * kLog2E, -FLT_MAX);
        to[i] = own;
        if (own > kHiding) own_last = i + 1;
        any = any || own > kSeen;
    }
    own_last = __reduce_max_sync(0xffffffffu, own_last);
    if (threadIdx.x % 32 == 0) last[threadIdx.x / 32] = own_last;
    if (!__syncthreads_or(any) || a.ahead != kUnlimited || a.behind != kUnlimited) return a.keys;
    for (int i = 0; i < S::kThreads / 32; ++i) own_last = max(own_last, last[i]);
    return own_last;
}

template <class T, class S, Scores kScores>
__global__ void __launch_bounds__(S::kThreads, S::kResident)
    short_kernel(Attention const a, int tiles, __grid_constant__ AttentionMaps const maps) {
    extern __shared__ __align__(16) unsigned char shared[];
    unsigned char* const q = shared + (1024 - device::shared_address(shared) % 1024) % 1024;
    unsigned char* const k = q + S::kQueryBytes;
    unsigned char* const v = k + S::kStages * S::kTileBytes;
    auto& barriers = *reinterpret_cast<ShortBarriers<S>*>(v + S::kStages * S::kTileBytes);
    float* const key_mask = reinterpret_cast<float*>(&barriers + 1);
    int const head_index = blockIdx.x / tiles;
    // Of causal tiles, those with the most keys go first.
    int const first_row = (tiles - 1 - static_cast<int>(blockIdx.x) % tiles) * S::kRows;
    constexpr bool kCounts = kScores == Scores::kCounted;
    auto const blocks_of = [&](auto const& count) {
        KeyRange const any_sees =
            keys_of_any(a, count, first_row, min(first_row + S::kRows, a.queries) - 1);
        int const begin = any_sees.begin / S::kKeys;
        return KeyRange{begin, max(begin, (any_sees.end + S::kKeys - 1) / S::kKeys)};
    };
    KeyRange blocks{};
    if constexpr (!kCounts) blocks = blocks_of(AllKeys{});
    int const batch = head_index / a.heads, head = head_index % a.heads;
    int const kv_head = head / (a.heads / a.kv_heads);  // once: a division is slow
    ShortTile<T, S, kScores> tile{
        a,       maps,      barriers,     q,          k,       v, batch, head,
        kv_head, first_row, blocks.begin, blocks.end, key_mask};
    if (threadIdx.x == 0) {
        prefetch_maps(maps);
        barriers.init();
    }
    device::wait_in_turn();
    if constexpr (kCounts) {  // only here: what the launch ahead writes may be the numbers of keys
        blocks = blocks_of(keys_of_batch(a, batch));
        tile.begin = blocks.begin, tile.end = blocks.end;
    }
    if (threadIdx.x == 0) {
        if (blocks.begin < blocks.end) tile.load_first();
    }
    if constexpr (kScores == Scores::kKeyMask) {
        int const keys = read_key_mask<T, S>(key_mask, a, mask_start(a, batch, head, 0));
        // What is on its way is waited for.
        tile.end =
            min(blocks.end, max((keys + S::kKeys - 1) / S::kKeys, blocks.begin + S::kStages));
    } else {
        __syncthreads();
    }
    tile.run();
}

// ---- launchers

template <class T, class S, Scores kScores>
cudaError_t launch_short(Attention const& a, cudaStream_t stream) {
    AttentionMaps maps;
    device::Machine machine;
    if (cudaError_t const status = device::current_machine(machine)) return status;
    if (!map_attention(maps, a, std::is_same_v<T, __half>, S::kRows, S::kKeys))
        return cudaErrorNotSupported;
    int const tiles = (a.queries + S::kRows - 1) / S::kRows;
    int64_t const blocks = a.batch * a.heads * tiles;
    if (blocks > INT32_MAX) return cudaErrorNotSupported;
    size_t const bytes =
        S::kSharedBytes + (kScores == Scores::kKeyMask ? sizeof(float) * (a.keys + S::kKeys) : 0);
    device::Grid const grid{blocks, dim3(S::kThreads), 1, bytes};
    bool const one_wave = blocks <= int64_t{machine.multiprocessors} * S::kResident;
    return device::launch(short_kernel<T, S, kScores>, early_if(machine, one_wave), grid, stream, a,
                          tiles, maps);
}

// Scores that are no more than scaled, with lengths or without.
template <class T, class S>
cudaError_t launch_scaled(Attention const& a, cudaStream_t stream) {
    return a.lengths.data ? launch_short<T, S, Scores::kCounted>(a, stream)
                          : launch_short<T, S, Scores::kScaled>(a, stream);
}

// Any scores; those with lengths are left to the mma.sync kernel.
template <class T, class S>
cudaError_t launch_any(Attention const& a, cudaStream_t stream) {
    return a.lengths.data ? cudaErrorNotSupported : launch_short<T, S, Scores::kAny>(a, stream);
}

}  // namespace opfuse
