// What the kernels of this folder launch, for host code.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

namespace opfuse {

// Added to the scores: strides in elements, 0 along an axis that broadcasts.
struct AttentionMask {
    void const* data = nullptr;  // null where there is none
    bool is_float = false;       // else of the type of q
    bool in_pairs = false;       // two neighbouring keys may be loaded at once
    int64_t batch = 0, head = 0, query = 0, key = 0;
};

// What a score loses for each key of distance, of each head (ALiBi, Press et al. 2022).
struct AttentionSlopes {
    void const* data = nullptr;  // null where there are none
    bool is_float = false;       // else of the type of q
};

// How many keys each batch has, [batch] or one for all: those behind are not seen, and its last
// query stands at its last key.  There need not be as many, nor any.
struct KeyLengths {
    void const* data = nullptr;  // null where there are all
    bool is_long = false;        // int64, else int32
    int step = 0;                // 0: one for all
};

// [batch, heads, rows, size]: strides in elements, of which the last axis has 1.
struct Heads {
    void* data;
    int64_t batch, head, row;
};

struct Attention {
    Heads y;             // [batch, heads, queries, value_size]
    Heads q;             // [batch, heads, queries, head_size]
    Heads k;             // [batch, kv_heads, keys, head_size]
    Heads v;             // [batch, kv_heads, keys, value_size]
    AttentionMask mask;  // [batch, heads, queries, keys]
    int64_t batch;
    int heads, kv_heads;  // query head h reads key/value head h / (heads / kv_heads)
    int queries, keys;
    int head_size, value_size;
    float scale;             // of q k^T
    float softcap;           // x -> softcap * tanh(x / softcap), where positive
    AttentionSlopes slopes;  // [heads]
    KeyLengths lengths;      // [batch]; `keys` is the most
    int behind, ahead;  // query i sees keys from i + length - queries - behind to the same + ahead
    bool nan_guard;     // a row whose weights are NaN gives 0
    bool in_vectors = false;    // q, k, v have rows of whole, aligned 16-byte vectors
    bool y_in_pairs = false;    // two neighbouring elements of y may be stored at once
    bool y_in_vectors = false;  // eight, too
};

// Scores are no more than scaled, by a positive number.
inline bool only_scales(Attention const& a) {
    return !a.mask.data && !a.slopes.data && !(a.softcap > 0.f) && a.scale > 0.f;
}

inline constexpr int kMaskKeys = 2048;  // that shared memory has room for beside tiles

// Scores have a mask that is the same for all queries, and are else no more than scaled; batches
// have all keys.
inline bool has_key_mask(Attention const& a) {
    return a.mask.data && a.mask.query == 0 && a.keys <= kMaskKeys && !a.lengths.data &&
           !a.slopes.data && !(a.softcap > 0.f);
}

// Scores have a mask that differs between queries and that the copy engine can read, and are else
// no more than scaled; batches have all keys.
inline bool has_tile_mask(Attention const& a) {
    AttentionMask const& mask = a.mask;
    bool const whole = mask.query % 8 == 0 && mask.head % 8 == 0 && mask.batch % 8 == 0 &&
                       reinterpret_cast<uintptr_t>(mask.data) % 16 == 0;
    return mask.data && !mask.is_float && mask.key == 1 && mask.query > 0 && whole &&
           !a.lengths.data && !a.slopes.data && !(a.softcap > 0.f);
}

// The same of one for all rows that one key/value head has, and of any number of keys.
inline bool has_row_mask(Attention const& a) {
    bool const of_all =
        (a.queries == 1 || a.mask.query == 0) && (a.heads == a.kv_heads || a.mask.head == 0);
    return a.mask.data && of_all && !a.lengths.data && !a.slopes.data && !(a.softcap > 0.f);
}

inline constexpr int kUnlimited = INT32_MAX;  // of behind and ahead

inline constexpr int kDecodeQueries = 16;    // at most, for the kernel that splits the keys
inline constexpr int kMaxParts = 1024;       // partial results that split keys give, at most
inline constexpr int kMinSplitKeys = 256;    // fewer keys are not worth a second kernel
inline constexpr int kMinManySplits = 384;   // keys that are worth four splits of a step or two
inline constexpr int kTensorCoreSize = 256;  // head sizes beyond run without tensor cores

// Scores of so many keys and queries, with a mask that is the same for all queries of a batch, that
// it pays to ask first which keys at the end it hides: 2 us, and the keys that nobody visits.
inline bool cuts_keys(Attention const& a) {
    constexpr int64_t kWork = int64_t{1} << 25;  // scores
    bool const of_keys = a.mask.data && a.mask.key && !a.mask.query && !a.mask.head;
    bool const many = a.keys >= 2 * kMinSplitKeys;
    bool const free = a.behind == kUnlimited && a.ahead == kUnlimited && !a.slopes.data;
    return of_keys && many && free && !a.lengths.data &&
           a.batch * a.heads * a.queries >= (kWork + a.keys - 1) / a.keys;
}

// Of attentions whose last round of tiles is shared out: multiprocessors at most; head sizes; and
// queries of a tile.
inline constexpr int kMostRest = 132, kRestSize = 128, kRestRows = 192;

// Bytes for the results of parts, two of which each multiprocessor has at most, with maxima and
// sums.
constexpr int64_t rest_bytes(int64_t size) {
    return 2 * kMostRest * kRestRows * (size + 8) * sizeof(float);
}

// Bytes with which attend() can split the keys of any attention of up to these sizes.
size_t attention_workspace(int64_t queries, int64_t keys, int64_t head_size, int64_t value_size);

// Chooses a kernel and launches it on `stream`; does not wait.  No tensor is empty.  Without a
// workspace the keys are not split.
template <class T>
cudaError_t attend(Attention const& attention, void* workspace, cudaStream_t stream);

// The kernels.  Those with tensor cores have one file for each kSize, which is at least both head
// sizes, so that builds run in parallel; the unnamed argument is __half or __nv_bfloat16.
template <int kSize>
cudaError_t prefill_attention(Attention const& attention, __half, cudaStream_t stream);
template <int kSize>
cudaError_t prefill_attention(Attention const& attention, __nv_bfloat16, cudaStream_t stream);
template <int kSize>  // compute capability 9.0, whole vectors, also of y, a mask in pairs; not all
                      // that have lengths and more than scaled scores
cudaError_t hopper_attention(Attention const& attention, __half, void* workspace,
                             cudaStream_t stream);
template <int kSize>
cudaError_t hopper_attention(Attention const& attention, __nv_bfloat16, void* workspace,
                             cudaStream_t stream);
template <int kSize>  // the same, for up to kDecodeQueries queries of scores that are only scaled,
                      // or of has_row_mask()
cudaError_t hopper_decode(Attention const& attention, __half, void* workspace, cudaStream_t stream);
template <int kSize>
cudaError_t hopper_decode(Attention const& attention, __nv_bfloat16, void* workspace,
                          cudaStream_t stream);
template <int kSize>  // the same, for some more queries of heads that share keys, no more than 64
cudaError_t hopper_packed(Attention const& attention, __half, void* workspace, cudaStream_t stream);
template <int kSize>
cudaError_t hopper_packed(Attention const& attention, __nv_bfloat16, void* workspace,
                          cudaStream_t stream);
template <int kSize>  // up to kDecodeQueries queries
cudaError_t decode_attention(Attention const& attention, __half, void* workspace,
                             cudaStream_t stream);
template <int kSize>
cudaError_t decode_attention(Attention const& attention, __nv_bfloat16, void* workspace,
                             cudaStream_t stream);
template <class T>  // of each batch, for attentions of which cuts_keys() holds
cudaError_t find_lengths(Attention const& attention, int32_t* lengths, cudaStream_t stream);
template <class T>  // float too, and any head size
cudaError_t plain_attention(Attention const& attention, cudaStream_t stream);

}  // namespace opfuse
