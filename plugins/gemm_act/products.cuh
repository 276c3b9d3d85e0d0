// Warp-group products d [64, kRows] = a b (+ d) with both operands in shared memory: a is the
// weight, whose 64 columns are the rows of d, and b is x, with k innermost.  The weight has k
// innermost, or its columns (kByRows: it is [k, columns]).
#pragma once
#include "../device/wgmma.cuh"

namespace opfuse::device {

// Sums of rows of x as operands, 8 after another, and the names of as many operands.
#define OPFUSE_SUMS_8(i) "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])
#define OPFUSE_SUMS_16(i) OPFUSE_SUMS_8(i), OPFUSE_SUMS_8(i + 1)
#define OPFUSE_SUMS_32(i) OPFUSE_SUMS_16(i), OPFUSE_SUMS_16(i + 2)
#define OPFUSE_SUMS_64(i) OPFUSE_SUMS_32(i), OPFUSE_SUMS_32(i + 4)
#define OPFUSE_SUMS_128(i) OPFUSE_SUMS_64(i), OPFUSE_SUMS_64(i + 8)
#define OPFUSE_SUMS_144(i) OPFUSE_SUMS_128(i), OPFUSE_SUMS_16(i + 16)
#define OPFUSE_SUMS_192(i) OPFUSE_SUMS_128(i), OPFUSE_SUMS_64(i + 16)
#define OPFUSE_SUMS_256(i) OPFUSE_SUMS_128(i), OPFUSE_SUMS_128(i + 16)

#define OPFUSE_NAMES_8 "%0, %1, %2, %3"
#define OPFUSE_NAMES_16 \
    OPFUSE_NAMES_8      \
    ", %4, %5, %6, %7"
#define OPFUSE_NAMES_32 \
    OPFUSE_NAMES_16     \
    ", %8, %9, %10, %11, %12, %13, %14, %15"
#define OPFUSE_NAMES_64 \
    OPFUSE_NAMES_32     \
    ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define OPFUSE_NAMES_128                                                                      \
    OPFUSE_NAMES_64                                                                           \
    ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, " \
    "%49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define OPFUSE_NAMES_144 \
    OPFUSE_NAMES_128     \
    ", %64, %65, %66, %67, %68, %69, %70, %71"
#define OPFUSE_NAMES_192                                                                      \
    OPFUSE_NAMES_144                                                                          \
    ", %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, " \
    "%89, %90, %91, %92, %93, %94, %95"
#define OPFUSE_NAMES_256                                                                   \
    OPFUSE_NAMES_192                                                                       \
    ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, "   \
    "%110, %111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, " \
    "%124, %125, %126, %127"

// `a_`, `b_`, and `add_` name the operands after the sums.
#define OPFUSE_MULTIPLY_AS(rows, type, by_rows, a_, b_, add_)                            \
    asm volatile("{.reg .pred p; setp.ne.b32 p, " add_                                   \
                 ", 0; wgmma.mma_async.sync.aligned.m64n" #rows "k16.f32." type "." type \
                 " {" OPFUSE_NAMES_##rows "}, " a_ ", " b_ ", p, 1, 1, " by_rows ", 0;}" \
                 : OPFUSE_SUMS_##rows(0)                                                 \
                 : "l"(a), "l"(b), "r"(static_cast<int>(add)))

#define OPFUSE_MULTIPLY(rows, a_, b_, add_)                                               \
    template <class T, bool kByRows>                                                      \
    __device__ void multiply(float (&d)[rows / 8][4], uint64_t a, uint64_t b, bool add) { \
        if constexpr (std::is_same_v<T, __half> && kByRows)                               \
            OPFUSE_MULTIPLY_AS(rows, "f16", "1", a_, b_, add_);                           \
        else if constexpr (std::is_same_v<T, __half>)                                     \
            OPFUSE_MULTIPLY_AS(rows, "f16", "0", a_, b_, add_);                           \
        else if constexpr (kByRows)                                                       \
            OPFUSE_MULTIPLY_AS(rows, "bf16", "1", a_, b_, add_);                          \
        else                                                                              \
            OPFUSE_MULTIPLY_AS(rows, "bf16", "0", a_, b_, add_);                          \
    }

OPFUSE_MULTIPLY(8, "%4", "%5", "%6")
OPFUSE_MULTIPLY(16, "%8", "%9", "%10")
OPFUSE_MULTIPLY(32, "%16", "%17", "%18")
OPFUSE_MULTIPLY(64, "%32", "%33", "%34")
OPFUSE_MULTIPLY(128, "%64", "%65", "%66")
OPFUSE_MULTIPLY(144, "%72", "%73", "%74")
OPFUSE_MULTIPLY(192, "%96", "%97", "%98")
OPFUSE_MULTIPLY(256, "%128", "%129", "%130")

#undef OPFUSE_MULTIPLY
#undef OPFUSE_MULTIPLY_AS
#undef OPFUSE_NAMES_256
#undef OPFUSE_NAMES_192
#undef OPFUSE_NAMES_144
#undef OPFUSE_NAMES_128
#undef OPFUSE_NAMES_64
#undef OPFUSE_NAMES_32
#undef OPFUSE_NAMES_16
#undef OPFUSE_NAMES_8
#undef OPFUSE_SUMS_256
#undef OPFUSE_SUMS_192
#undef OPFUSE_SUMS_144
#undef OPFUSE_SUMS_128
#undef OPFUSE_SUMS_64
#undef OPFUSE_SUMS_32
#undef OPFUSE_SUMS_16
#undef OPFUSE_SUMS_8

}  // namespace opfuse::device
