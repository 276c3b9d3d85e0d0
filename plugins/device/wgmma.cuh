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
#define OPFUSE_SUMS_8(d, i) "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])
#define OPFUSE_SUMS_32(d, i)                                                   \
    OPFUSE_SUMS_8(d, i), OPFUSE_SUMS_8(d, (i) + 1), OPFUSE_SUMS_8(d, (i) + 2), \
        OPFUSE_SUMS_8(d, (i) + 3)
#define OPFUSE_SUMS_64(d) OPFUSE_SUMS_32(d, 0), OPFUSE_SUMS_32(d, 4)
#define OPFUSE_SUMS_128(d) OPFUSE_SUMS_64(d), OPFUSE_SUMS_32(d, 8), OPFUSE_SUMS_32(d, 12)
#define OPFUSE_NAMES_64                                                                \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, " \
    "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define OPFUSE_NAMES_128                                                                 \
    OPFUSE_NAMES_64                                                                      \
    ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

// One step of 16 along k: the first operand after the sums is `a`, the last says whether to add.
#define OPFUSE_MULTIPLY(COLUMNS, KIND, ADD, OPERANDS, ...)                                  \
    asm volatile("{.reg .pred add; setp.ne.b32 add, " ADD                                   \
                 ", 0; wgmma.mma_async.sync.aligned.m64n" #COLUMNS "k16.f32." KIND "." KIND \
                 " {" OPFUSE_NAMES_##COLUMNS "}, " OPERANDS ";}"                            \
                 : OPFUSE_SUMS_##COLUMNS(d)                                                 \
                 : __VA_ARGS__)

// d [64, 8 kBlocks] = a b^T (+ d), both in shared memory with k innermost.
template <class T, int kBlocks>
__device__ void multiply_shared(float (&d)[kBlocks][4], uint64_t a, uint64_t b, bool add) {
    static_assert(kBlocks == 8 || kBlocks == 16);
#define OPFUSE_SHARED(COLUMNS, KIND, A, B, ADD)                                       \
    OPFUSE_MULTIPLY(COLUMNS, KIND, ADD, A ", " B ", add, 1, 1, 0, 0", "l"(a), "l"(b), \
                    "r"(static_cast<int>(add)))
    if constexpr (kBlocks == 8 && std::is_same_v<T, __half>)
        OPFUSE_SHARED(64, "f16", "%32", "%33", "%34");
    else if constexpr (kBlocks == 8)
        OPFUSE_SHARED(64, "bf16", "%32", "%33", "%34");
    else if constexpr (std::is_same_v<T, __half>)
        OPFUSE_SHARED(128, "f16", "%64", "%65", "%66");
    else
        OPFUSE_SHARED(128, "bf16", "%64", "%65", "%66");
#undef OPFUSE_SHARED
}

// d [64, 8 kBlocks] += a b, with b in shared memory and its columns innermost; `a` is as mma.cuh's
// fragment A.
template <class T, int kBlocks>
__device__ void multiply_registers(float (&d)[kBlocks][4], uint32_t const (&a)[4], uint64_t b) {
    static_assert(kBlocks == 8 || kBlocks == 16);
#define OPFUSE_REGISTERS(COLUMNS, KIND, A, B, ADD)                                            \
    OPFUSE_MULTIPLY(COLUMNS, KIND, ADD, "{" A "}, " B ", add, 1, 1, 1", "r"(a[0]), "r"(a[1]), \
                    "r"(a[2]), "r"(a[3]), "l"(b), "r"(1))
    if constexpr (kBlocks == 8 && std::is_same_v<T, __half>)
        OPFUSE_REGISTERS(64, "f16", "%32, %33, %34, %35", "%36", "%37");
    else if constexpr (kBlocks == 8)
        OPFUSE_REGISTERS(64, "bf16", "%32, %33, %34, %35", "%36", "%37");
    else if constexpr (std::is_same_v<T, __half>)
        OPFUSE_REGISTERS(128, "f16", "%64, %65, %66, %67", "%68", "%69");
    else
        OPFUSE_REGISTERS(128, "bf16", "%64, %65, %66, %67", "%68", "%69");
#undef OPFUSE_REGISTERS
}

#undef OPFUSE_MULTIPLY
#undef OPFUSE_NAMES_128
#undef OPFUSE_NAMES_64
#undef OPFUSE_SUMS_128
#undef OPFUSE_SUMS_64
#undef OPFUSE_SUMS_32
#undef OPFUSE_SUMS_8

}  // namespace opfuse::device
