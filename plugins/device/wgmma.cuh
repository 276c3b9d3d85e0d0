// Warp-group matrix products of Hopper (sm_90a): 64 rows, fp32 sums in registers as in mma.cuh's
// fragment C, 8 columns after another; warp w of the group has rows 16 w and on.
//
// Operands in shared memory are boxes of rows of 128 bytes, swizzled as TMA does.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "mma.cuh"

namespace opfuse::device {

inline constexpr int kBoxBytes = 128;                // of a row of a box: the swizzle's width
inline constexpr uint64_t kBoxStep = 8 * kBoxBytes;  // rows repeat their swizzle after 8

// Describes boxes that begin at `address`, which is a multiple of 1024 or, in steps of 16 elements
// of k, behind one; `box_stride` bytes lie between boxes of neighbouring columns.
__device__ inline uint64_t describe_box(uint32_t address, uint64_t box_stride) {
    uint64_t const swizzle_128 = uint64_t{1} << 62;
    return swizzle_128 | kBoxStep / 16 << 32 | box_stride / 16 << 16 | (address & 0x3ffff) / 16;
}

// Before the first product that uses registers which other instructions wrote.
__device__ inline void fence_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ inline void commit_products() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Whatever computes these values stays before this place, and whatever reads them after it: the
// compiler does not know that products write registers later than where they are issued.
template <int kBlocks>
__device__ void pin(float (&values)[kBlocks][4]) {
#pragma unroll
    for (int i = 0; i < kBlocks; ++i)
        asm volatile(""
                     : "+f"(values[i][0]), "+f"(values[i][1]), "+f"(values[i][2]),
                       "+f"(values[i][3])
                     :
                     : "memory");
}

// Waits until at most `kPending` committed groups are under way.
template <int kPending>
__device__ void wait_for_products() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// The sums of 8 columns after another as operands, and their names in the instruction.
#define OPFUSE_SUMS_8(d, i) \
    OPFUSE_SUM(d[i][0]), OPFUSE_SUM(d[i][1]), OPFUSE_SUM(d[i][2]), OPFUSE_SUM(d[i][3])
#define OPFUSE_SUMS_16(d, i) OPFUSE_SUMS_8(d, i), OPFUSE_SUMS_8(d, (i) + 1)
#define OPFUSE_SUMS_OF_32(d, i) OPFUSE_SUMS_16(d, i), OPFUSE_SUMS_16(d, (i) + 2)
#define OPFUSE_SUMS_32(d) OPFUSE_SUMS_OF_32(d, 0)
#define OPFUSE_SUMS_64(d) OPFUSE_SUMS_OF_32(d, 0), OPFUSE_SUMS_OF_32(d, 4)
#define OPFUSE_SUMS_80(d) OPFUSE_SUMS_64(d), OPFUSE_SUMS_16(d, 8)
#define OPFUSE_SUMS_96(d) OPFUSE_SUMS_64(d), OPFUSE_SUMS_OF_32(d, 8)
#define OPFUSE_SUMS_112(d) OPFUSE_SUMS_96(d), OPFUSE_SUMS_16(d, 12)
#define OPFUSE_SUMS_128(d) OPFUSE_SUMS_96(d), OPFUSE_SUMS_OF_32(d, 12)
#define OPFUSE_SUMS_176(d) OPFUSE_SUMS_128(d), OPFUSE_SUMS_OF_32(d, 16), OPFUSE_SUMS_16(d, 20)
#define OPFUSE_SUMS_192(d) OPFUSE_SUMS_128(d), OPFUSE_SUMS_OF_32(d, 16), OPFUSE_SUMS_OF_32(d, 20)
#define OPFUSE_SUMS_208(d) OPFUSE_SUMS_192(d), OPFUSE_SUMS_16(d, 24)
#define OPFUSE_SUMS_256(d) OPFUSE_SUMS_192(d), OPFUSE_SUMS_OF_32(d, 24), OPFUSE_SUMS_OF_32(d, 28)
#define OPFUSE_NAMES_32 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define OPFUSE_NAMES_64 \
    OPFUSE_NAMES_32     \
    ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define OPFUSE_NAMES_80 \
    OPFUSE_NAMES_64     \
    ", %32, %33, %34, %35, %36, %37, %38, %39"
#define OPFUSE_NAMES_96 \
    OPFUSE_NAMES_80     \
    ", %40, %41, %42, %43, %44, %45, %46, %47"
#define OPFUSE_NAMES_112 \
    OPFUSE_NAMES_96      \
    ", %48, %49, %50, %51, %52, %53, %54, %55"
#define OPFUSE_NAMES_128 \
    OPFUSE_NAMES_112     \
    ", %56, %57, %58, %59, %60, %61, %62, %63"
#define OPFUSE_NAMES_176                                                            \
    OPFUSE_NAMES_128                                                                \
    ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, " \
    "%79, %80, %81, %82, %83, %84, %85, %86, %87"
#define OPFUSE_NAMES_192 \
    OPFUSE_NAMES_176     \
    ", %88, %89, %90, %91, %92, %93, %94, %95"
#define OPFUSE_NAMES_208 \
    OPFUSE_NAMES_192     \
    ", %96, %97, %98, %99, %100, %101, %102, %103"
#define OPFUSE_NAMES_256                                                         \
    OPFUSE_NAMES_208                                                             \
    ", %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, " \
    "%116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

// One step of 16 along k: ADD says whether to add, to sums that are read and written then, and
// only written else, so that no register keeps what they were; the first operand after the sums is
// `a`.
#define OPFUSE_MULTIPLY(COLUMNS, KIND, ADD, OPERANDS, ...)                                  \
    asm volatile("{.reg .pred add; setp.ne.b32 add, " #ADD                                  \
                 ", 0; wgmma.mma_async.sync.aligned.m64n" #COLUMNS "k16.f32." KIND "." KIND \
                 " {" OPFUSE_NAMES_##COLUMNS "}, " OPERANDS ";}"                            \
                 : OPFUSE_SUMS_##COLUMNS(d)                                                 \
                 : __VA_ARGS__)
#define OPFUSE_SHARED(COLUMNS, KIND, ADD, A, B) \
    OPFUSE_MULTIPLY(COLUMNS, KIND, ADD, A ", " B ", add, 1, 1, 0, 0", "l"(a), "l"(b))
#define OPFUSE_SHARED_CASE(COLUMNS, ...)                               \
    if constexpr (8 * kBlocks == COLUMNS && std::is_same_v<T, __half>) \
        OPFUSE_SHARED(COLUMNS, "f16", __VA_ARGS__);                    \
    else if constexpr (8 * kBlocks == COLUMNS)                         \
    OPFUSE_SHARED(COLUMNS, "bf16", __VA_ARGS__)
#define OPFUSE_SHARED_CASES(ADD)                \
    OPFUSE_SHARED_CASE(64, ADD, "%32", "%33");  \
    OPFUSE_SHARED_CASE(80, ADD, "%40", "%41");  \
    OPFUSE_SHARED_CASE(96, ADD, "%48", "%49");  \
    OPFUSE_SHARED_CASE(112, ADD, "%56", "%57"); \
    OPFUSE_SHARED_CASE(128, ADD, "%64", "%65"); \
    OPFUSE_SHARED_CASE(176, ADD, "%88", "%89"); \
    OPFUSE_SHARED_CASE(192, ADD, "%96", "%97"); \
    OPFUSE_SHARED_CASE(208, ADD, "%104", "%105")
#define OPFUSE_REGISTERS(COLUMNS, KIND, ADD, A, B)                                            \
    OPFUSE_MULTIPLY(COLUMNS, KIND, ADD, "{" A "}, " B ", add, 1, 1, 1", "r"(a[0]), "r"(a[1]), \
                    "r"(a[2]), "r"(a[3]), "l"(b))
#define OPFUSE_REGISTERS_CASE(COLUMNS, ...)                            \
    if constexpr (8 * kBlocks == COLUMNS && std::is_same_v<T, __half>) \
        OPFUSE_REGISTERS(COLUMNS, "f16", __VA_ARGS__);                 \
    else if constexpr (8 * kBlocks == COLUMNS)                         \
    OPFUSE_REGISTERS(COLUMNS, "bf16", __VA_ARGS__)
#define OPFUSE_REGISTERS_CASES(ADD)                                \
    OPFUSE_REGISTERS_CASE(32, ADD, "%16, %17, %18, %19", "%20");   \
    OPFUSE_REGISTERS_CASE(64, ADD, "%32, %33, %34, %35", "%36");   \
    OPFUSE_REGISTERS_CASE(80, ADD, "%40, %41, %42, %43", "%44");   \
    OPFUSE_REGISTERS_CASE(96, ADD, "%48, %49, %50, %51", "%52");   \
    OPFUSE_REGISTERS_CASE(128, ADD, "%64, %65, %66, %67", "%68");  \
    OPFUSE_REGISTERS_CASE(192, ADD, "%96, %97, %98, %99", "%100"); \
    OPFUSE_REGISTERS_CASE(256, ADD, "%128, %129, %130, %131", "%132")

// d [64, 8 kBlocks] = a b^T, or += with kAdd, both in shared memory with k innermost.
template <class T, bool kAdd, int kBlocks>
__device__ void multiply_shared(float (&d)[kBlocks][4], uint64_t a, uint64_t b) {
    if constexpr (kAdd) {
#define OPFUSE_SUM(x) "+f"(x)
        OPFUSE_SHARED_CASES(1);
#undef OPFUSE_SUM
    } else {
#define OPFUSE_SUM(x) "=f"(x)
        OPFUSE_SHARED_CASES(0);
#undef OPFUSE_SUM
    }
}

// The same for a b, with b in shared memory and its columns innermost; `a` is as mma.cuh's fragment
// A.
template <class T, bool kAdd, int kBlocks>
__device__ void multiply_registers(float (&d)[kBlocks][4], uint32_t const (&a)[4], uint64_t b) {
    if constexpr (kAdd) {
#define OPFUSE_SUM(x) "+f"(x)
        OPFUSE_REGISTERS_CASES(1);
#undef OPFUSE_SUM
    } else {
#define OPFUSE_SUM(x) "=f"(x)
        OPFUSE_REGISTERS_CASES(0);
#undef OPFUSE_SUM
    }
}

#undef OPFUSE_REGISTERS_CASES
#undef OPFUSE_REGISTERS_CASE
#undef OPFUSE_REGISTERS
#undef OPFUSE_SHARED_CASES
#undef OPFUSE_SHARED_CASE
#undef OPFUSE_SHARED
#undef OPFUSE_MULTIPLY
#undef OPFUSE_NAMES_256
#undef OPFUSE_NAMES_208
#undef OPFUSE_NAMES_192
#undef OPFUSE_NAMES_176
#undef OPFUSE_NAMES_128
#undef OPFUSE_NAMES_112
#undef OPFUSE_NAMES_96
#undef OPFUSE_NAMES_80
#undef OPFUSE_NAMES_64
#undef OPFUSE_NAMES_32
#undef OPFUSE_SUMS_256
#undef OPFUSE_SUMS_208
#undef OPFUSE_SUMS_192
#undef OPFUSE_SUMS_176
#undef OPFUSE_SUMS_128
#undef OPFUSE_SUMS_112
#undef OPFUSE_SUMS_96
#undef OPFUSE_SUMS_80
#undef OPFUSE_SUMS_64
#undef OPFUSE_SUMS_32
#undef OPFUSE_SUMS_OF_32
#undef OPFUSE_SUMS_16
#undef OPFUSE_SUMS_8

}  // namespace opfuse::device
