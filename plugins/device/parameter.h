// Kernel arguments that host code sees too.
#pragma once

namespace opfuse::device {

// gamma, beta, bias: [cols] of the op's element type or of float; null where absent.
struct Parameter {
    void const* data = nullptr;
    bool is_float = false;
};

}  // namespace opfuse::device
