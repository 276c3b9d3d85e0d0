// Mean and spread of some values, for kernels and for host code.
#pragma once

namespace opfuse::device {

// Merged as by Chan, Golub, and LeVeque (1979): no value is squared far from its mean.
struct Moments {
    float count = 0.f, mean = 0.f;
    float squares = 0.f;  // sum of squared differences from that mean
};

}  // namespace opfuse::device
