// What the contract test has to know of an op: one file in cases/ for each.
#pragma once
#include <string>
#include <vector>

#include "host.h"

namespace contract {

using Dims = std::vector<std::string>;  // numbers and symbols, such as {"batch", "7", "64"}

// One way to use the op.  `roles` has a letter an input: 'x' for the type of the first input,
// 'p' for a parameter, which may also be fp32.  Outputs have the type of the first input.
struct Use {
    std::string roles;
    std::vector<Dims> inputs;
    std::vector<Dims> outputs;
};

// Attributes that are refused, and a part of the message that says why.
struct Refusal {
    Fields given;
    std::string message;
};

struct Case {
    std::string op;
    std::vector<std::string> field_names;
    Fields attributes;                    // none of them at its default
    std::vector<std::string> serialised;  // what `attributes` are written back as
    std::vector<Use> uses;
    std::vector<Refusal> refusals;
    std::vector<Use> bad_shapes;  // refused by getOutputShapes
    bool has_tactics = false;
    bool takes_float = true;  // for the first input; fp16 and bf16 all take
};

std::vector<Case>& cases();

struct RegisterCase {
    explicit RegisterCase(Case const& c) { cases().push_back(c); }
};

inline Fields fields() { return {}; }

}  // namespace contract
