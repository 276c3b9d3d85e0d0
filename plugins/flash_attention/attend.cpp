#include <algorithm>

#include "../device/tensor_map.h"
#include "launch.h"

namespace opfuse {
namespace {

template <class T>
cudaError_t prefill(Attention const& a, cudaStream_t stream) {
    int const size = std::max(a.head_size, a.value_size);
    if (size <= 32) return prefill_attention<32>(a, T{}, stream);
    if (size <= 64) return prefill_attention<64>(a, T{}, stream);
    if (size <= 80) return prefill_attention<80>(a, T{}, stream);
    if (size <= 96) return prefill_attention<96>(a, T{}, stream);
    if (size <= 128) return prefill_attention<128>(a, T{}, stream);
    if (size <= 192) return prefill_attention<192>(a, T{}, stream);
    return prefill_attention<256>(a, T{}, stream);
}

#ifdef OPFUSE_HOPPER
// Whether the Hopper kernels suit the operands and the device.
bool suits_hopper_but_for_mask(Attention const& a) {
    int const size = std::max(a.head_size, a.value_size);
    return size <= kTensorCoreSize && a.in_vectors && a.y_in_vectors && device::is_hopper();
}

// Whether the Hopper kernel suits the attention and the device.
bool suits_hopper(Attention const& a) {
    int const size = std::max(a.head_size, a.value_size);
    bool const odd_mask = a.mask.data && !a.mask.in_pairs && !(size <= 64 && has_key_mask(a));
    return !odd_mask && suits_hopper_but_for_mask(a);
}

template <class T>
cudaError_t hopper(Attention const& a, void* workspace, cudaStream_t stream) {
    int const size = std::max(a.head_size, a.value_size);
    if (size <= 32 && only_scales(a)) return hopper_attention<32>(a, T{}, workspace, stream);
    if (size <= 64) return hopper_attention<64>(a, T{}, workspace, stream);
    if (size <= 80) return hopper_attention<80>(a, T{}, workspace, stream);
    if (size <= 96) return hopper_attention<96>(a, T{}, workspace, stream);
    if (size <= 128) return hopper_attention<128>(a, T{}, workspace, stream);
    if (size <= 192) return hopper_attention<192>(a, T{}, workspace, stream);
    return hopper_attention<256>(a, T{}, workspace, stream);
}

// Whether the Hopper kernel for few queries does: queries of one position, where heads share keys,
// and no more of them than one product has.
bool suits_hopper_decode(Attention const& a) {
    bool const rows = a.heads == a.kv_heads || (a.queries == 1 && a.heads / a.kv_heads <= 64);
    bool const known = !a.lengths.data || a.behind == kUnlimited;  // the first key that is seen
    bool const simple = only_scales(a) || has_row_mask(a);
    return rows && known && simple && suits_hopper_but_for_mask(a);
}

template <class T>
cudaError_t hopper_decode(Attention const& a, void* workspace, cudaStream_t stream) {
    int const size = std::max(a.head_size, a.value_size);
    if (size <= 64) return hopper_decode<64>(a, T{}, workspace, stream);
    if (size <= 128) return hopper_decode<128>(a, T{}, workspace, stream);
    return hopper_decode<256>(a, T{}, workspace, stream);
}

// Whether the Hopper kernel for several queries of heads that share keys does; it refuses so many
// that it need not split keys.
bool suits_hopper_packed(Attention const& a) {
    constexpr int kRows = 64, kFewKeys = 512, kManyKeys = 1024;
    int const group = a.heads / a.kv_heads;
    bool const known = !a.lengths.data || a.behind == kUnlimited;  // the first key that is seen
    bool const simple = only_scales(a) || has_row_mask(a);
    if (a.queries == 1 || group > kRows || a.keys <= kFewKeys || !known || !simple) return false;
    bool const pays = a.queries <= kDecodeQueries ? group > 1 : a.keys >= kManyKeys;
    return pays && suits_hopper_but_for_mask(a);
}

template <class T>
cudaError_t hopper_packed(Attention const& a, void* workspace, cudaStream_t stream) {
    int const size = std::max(a.head_size, a.value_size);
    if (size <= 64) return hopper_packed<64>(a, T{}, workspace, stream);
    if (size <= 128) return hopper_packed<128>(a, T{}, workspace, stream);
    return hopper_packed<256>(a, T{}, workspace, stream);
}
#else
bool suits_hopper(Attention const&) { return false; }

template <class T>
cudaError_t hopper(Attention const&, void*, cudaStream_t) {
    return cudaErrorNotSupported;
}

bool suits_hopper_decode(Attention const&) { return false; }

template <class T>
cudaError_t hopper_decode(Attention const&, void*, cudaStream_t) {
    return cudaErrorNotSupported;
}

bool suits_hopper_packed(Attention const&) { return false; }

template <class T>
cudaError_t hopper_packed(Attention const&, void*, cudaStream_t) {
    return cudaErrorNotSupported;
}
#endif

template <class T>
cudaError_t decode(Attention const& a, void* workspace, cudaStream_t stream) {
    int const size = std::max(a.head_size, a.value_size);
    if (size <= 64) return decode_attention<64>(a, T{}, workspace, stream);
    if (size <= 128) return decode_attention<128>(a, T{}, workspace, stream);
    return decode_attention<256>(a, T{}, workspace, stream);
}

}  // namespace

size_t attention_workspace(int64_t queries, int64_t keys, int64_t head_size, int64_t value_size) {
    int64_t const size = std::max(head_size, value_size);
    if (keys < kMinManySplits || size > kTensorCoreSize) return 0;
    int64_t const instance = size <= 64 ? 64 : size <= 128 ? 128 : 256;
    int64_t const split = kMaxParts * kDecodeQueries * (instance + 2) * sizeof(float);
    bool const has_rest = queries > kDecodeQueries && size <= kRestSize;
    return std::max(split, has_rest ? rest_bytes(instance) : 0);
}

template <class T>
cudaError_t attend(Attention const& given, void* workspace, cudaStream_t stream) {
    Attention a = given;
    if (std::max(a.head_size, a.value_size) > kTensorCoreSize) return plain_attention<T>(a, stream);
    cudaError_t status = cudaErrorNotSupported;
    if (suits_hopper_packed(a)) status = hopper_packed<T>(a, workspace, stream);
    if (status != cudaErrorNotSupported) return status;
    if (a.queries <= kDecodeQueries) {
        // 16 queries of 16 keys, four heads of which share keys, take 11 us in decode's kernel.
        constexpr int kFewKeys = 512;
        bool const many_rows = a.queries > 1 && a.keys <= kFewKeys;
        if (suits_hopper_decode(a))
            status = hopper_decode<T>(a, workspace, stream);
        else if (many_rows && suits_hopper(a))
            status = hopper<T>(a, workspace, stream);
        return status == cudaErrorNotSupported ? decode<T>(a, workspace, stream) : status;
    }
    // Of smaller heads the Hopper kernel cuts keys itself, or has no instance for lengths.
    bool const cuts = std::max(a.head_size, a.value_size) > 64 || !suits_hopper(a);
    if (workspace && cuts && cuts_keys(a) && a.batch <= kMaxParts) {
        auto* const lengths = static_cast<int32_t*>(workspace);
        if (cudaError_t const failed = find_lengths<T>(a, lengths, stream)) return failed;
        a.lengths = {lengths, false, 1};
    }
    if (suits_hopper(a)) status = hopper<T>(a, workspace, stream);
    return status == cudaErrorNotSupported ? prefill<T>(a, stream) : status;
}

template <>
cudaError_t attend<float>(Attention const& a, void*, cudaStream_t stream) {
    return plain_attention<float>(a, stream);
}

template cudaError_t attend<__half>(Attention const&, void*, cudaStream_t);
template cudaError_t attend<__nv_bfloat16>(Attention const&, void*, cudaStream_t);

}  // namespace opfuse
