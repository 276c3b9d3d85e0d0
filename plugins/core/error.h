// Errors: exceptions stop here, once, for every callback and every C function.
#pragma once
#include <exception>
#include <utility>

namespace opfuse {

// Keeps "<who>: <what>" as this thread's last error.
void set_last_error(char const* who, char const* what) noexcept;
char const* last_error() noexcept;

// `body()`, or `failure` where it throws; the message is then this thread's last error.
template <class Body, class Result = decltype(std::declval<Body>()())>
Result guarded(char const* who, Result failure, Body&& body) noexcept {
    try {
        return body();
    } catch (std::exception const& error) {
        set_last_error(who, error.what());
    } catch (...) {
        set_last_error(who, "unknown exception");
    }
    return failure;
}

}  // namespace opfuse
