#include "nccl.h"

#include <dlfcn.h>

#include <stdexcept>

namespace opfuse {
namespace {

template <class Function>
bool find(void* library, Function& function, char const* name, std::string& why) {
    function = reinterpret_cast<Function>(dlsym(library, name));
    if (!function) why = std::string("it has no ") + name;
    return function != nullptr;
}

}  // namespace

void Nccl::check(int status, char const* what) const {
    if (status != 0)
        throw std::runtime_error(std::string("NCCL: ") + what + ": " + error_string(status));
}

std::string Nccl::version() const {
    int number = 0;  // major * 10000 + minor * 100 + patch from 2.9 on
    check(get_version(&number), "ncclGetVersion");
    return std::to_string(number / 10000) + "." + std::to_string(number / 100 % 100) + "." +
           std::to_string(number % 100);
}

// Never unloaded: NCCL has threads of its own.
Nccl load_nccl(char const* path, std::string& why) {
    void* const library = dlopen(path ? path : "libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        char const* const error = dlerror();
        why = error ? error : "it cannot be loaded";
        return {};
    }
    Nccl nccl;
    bool const found = find(library, nccl.get_version, "ncclGetVersion", why) &&
                       find(library, nccl.get_id, "ncclGetUniqueId", why) &&
                       find(library, nccl.init_rank, "ncclCommInitRank", why) &&
                       find(library, nccl.all_reduce, "ncclAllReduce", why) &&
                       find(library, nccl.all_gather, "ncclAllGather", why) &&
                       find(library, nccl.group_start, "ncclGroupStart", why) &&
                       find(library, nccl.group_end, "ncclGroupEnd", why) &&
                       find(library, nccl.abort, "ncclCommAbort", why) &&
                       find(library, nccl.destroy, "ncclCommDestroy", why) &&
                       find(library, nccl.error_string, "ncclGetErrorString", why);
    return found ? nccl : Nccl{};
}

int nccl_type(DataType type) {
    switch (type) {
    case DataType::kFloat16: return 6;
    case DataType::kFloat: return 7;
    case DataType::kBfloat16: return 9;
    default: throw std::invalid_argument("NCCL is asked for another type than a float");
    }
}

}  // namespace opfuse
