// The few functions of NCCL that are used, loaded at run time: the library links to none.
#pragma once
#include <cuda_runtime_api.h>

#include <cstddef>
#include <string>

#include "../core/types.h"

namespace opfuse {

// Spelt as in nccl.h, whose C interface NCCL 2 keeps.
struct NcclId {
    char bytes[128];
};

struct Nccl {
    int (*get_version)(int*) = nullptr;
    int (*get_id)(NcclId*) = nullptr;
    int (*init_rank)(void**, int, NcclId, int) = nullptr;
    int (*all_reduce)(void const*, void*, size_t, int, int, void*, cudaStream_t) = nullptr;
    int (*all_gather)(void const*, void*, size_t, int, void*, cudaStream_t) = nullptr;
    int (*group_start)() = nullptr;
    int (*group_end)() = nullptr;
    int (*abort)(void*) = nullptr;
    int (*destroy)(void*) = nullptr;
    char const* (*error_string)(int) = nullptr;

    bool loaded() const { return error_string != nullptr; }
    // Throws std::runtime_error with NCCL's words.
    void check(int status, char const* what) const;
    std::string version() const;  // "2.28.9"
};

// From `path`, or libnccl.so.2 where it is null; not loaded, and `why` set, where that fails.
Nccl load_nccl(char const* path, std::string& why);

// ncclDataType_t of a floating type, and ncclSum.
int nccl_type(DataType type);
inline constexpr int kNcclSum = 0;
inline constexpr int kNcclInt32 = 2, kNcclMin = 3;

}  // namespace opfuse
