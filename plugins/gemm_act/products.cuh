// Warp-group products d [64, kCols] = a b (+ d) with both operands in shared memory, for the widest
// instructions: a has k innermost; b has k innermost, or its columns (kByRows: b is [k, columns]).
#pragma once
#include "../device/wgmma.cuh"

namespace opfuse::device {

#define OPFUSE_SUMS_8(i)                                                           \
    "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3]), "+f"(d[i + 1][0]), \
        "+f"(d[i + 1][1]), "+f"(d[i + 1][2]), "+f"(d[i + 1][3])
#define OPFUSE_SUMS_32(i) \
    OPFUSE_SUMS_8(i), OPFUSE_SUMS_8(i + 2), OPFUSE_SUMS_8(i + 4), OPFUSE_SUMS_8(i + 6)

#define OPFUSE_MULTIPLY_256(type, by_rows)                                                      \
    asm volatile(                                                                               \
        "{.reg .pred p; setp.ne.b32 p, %130, 0; "                                               \
        "wgmma.mma_async.sync.aligned.m64n256k16.f32." type "." type                            \
        " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, "    \
        "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, " \
        "%35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, " \
        "%52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, %66, %67, %68, " \
        "%69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, " \
        "%86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, "    \
        "%102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, "  \
        "%116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, "             \
        "%128, %129, p, 1, 1, 0, " by_rows ";}"                                                 \
        : OPFUSE_SUMS_32(0), OPFUSE_SUMS_32(8), OPFUSE_SUMS_32(16), OPFUSE_SUMS_32(24)          \
        : "l"(a), "l"(b), "r"(static_cast<int>(add)))

#define OPFUSE_MULTIPLY_192(type, by_rows)                                       \
    asm volatile(                                                                \
        "{.reg .pred p; setp.ne.b32 p, %98, 0; "                                 \
        "wgmma.mma_async.sync.aligned.m64n192k16.f32." type "." type             \
        " {"                                                                     \
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, " \
        "%30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, " \
        "%44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, " \
        "%58, %59, %60, %61, %62, %63, %64, %65, %66, %67, %68, %69, %70, %71, " \
        "%72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, " \
        "%86, %87, %88, %89, %90, %91, %92, %93, %94, %95}, "                    \
        "%96, %97, p, 1, 1, 0, " by_rows ";}"                                    \
        : OPFUSE_SUMS_32(0), OPFUSE_SUMS_32(8), OPFUSE_SUMS_32(16)               \
        : "l"(a), "l"(b), "r"(static_cast<int>(add)))

#define OPFUSE_MULTIPLY_128(type, by_rows)                                                      \
    asm volatile(                                                                               \
        "{.reg .pred p; setp.ne.b32 p, %66, 0; "                                                \
        "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type                            \
        " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, "    \
        "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, " \
        "%35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, " \
        "%52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "                         \
        "%64, %65, p, 1, 1, 0, " by_rows ";}"                                                   \
        : OPFUSE_SUMS_32(0), OPFUSE_SUMS_32(8)                                                  \
        : "l"(a), "l"(b), "r"(static_cast<int>(add)))

template <class T, bool kByRows>
__device__ void multiply(float (&d)[32][4], uint64_t a, uint64_t b, bool add) {
    if constexpr (std::is_same_v<T, __half> && kByRows)
        OPFUSE_MULTIPLY_256("f16", "1");
    else if constexpr (std::is_same_v<T, __half>)
        OPFUSE_MULTIPLY_256("f16", "0");
    else if constexpr (kByRows)
        OPFUSE_MULTIPLY_256("bf16", "1");
    else
        OPFUSE_MULTIPLY_256("bf16", "0");
}

template <class T, bool kByRows>
__device__ void multiply(float (&d)[24][4], uint64_t a, uint64_t b, bool add) {
    if constexpr (std::is_same_v<T, __half> && kByRows)
        OPFUSE_MULTIPLY_192("f16", "1");
    else if constexpr (std::is_same_v<T, __half>)
        OPFUSE_MULTIPLY_192("f16", "0");
    else if constexpr (kByRows)
        OPFUSE_MULTIPLY_192("bf16", "1");
    else
        OPFUSE_MULTIPLY_192("bf16", "0");
}

template <class T, bool kByRows>
__device__ void multiply(float (&d)[16][4], uint64_t a, uint64_t b, bool add) {
    if constexpr (std::is_same_v<T, __half> && kByRows)
        OPFUSE_MULTIPLY_128("f16", "1");
    else if constexpr (std::is_same_v<T, __half>)
        OPFUSE_MULTIPLY_128("f16", "0");
    else if constexpr (kByRows)
        OPFUSE_MULTIPLY_128("bf16", "1");
    else
        OPFUSE_MULTIPLY_128("bf16", "0");
}

#undef OPFUSE_MULTIPLY_128
#undef OPFUSE_MULTIPLY_192
#undef OPFUSE_MULTIPLY_256
#undef OPFUSE_SUMS_32
#undef OPFUSE_SUMS_8

}  // namespace opfuse::device
