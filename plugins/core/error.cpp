#include "error.h"

#include <cstdio>

namespace opfuse {
namespace {

thread_local char message[512] = "";  // fixed: reporting "out of memory" must not allocate

}  // namespace

void set_last_error(char const* who, char const* what) noexcept {
    std::snprintf(message, sizeof message, "%s: %s", who, what);
}

char const* last_error() noexcept { return message; }

}  // namespace opfuse
