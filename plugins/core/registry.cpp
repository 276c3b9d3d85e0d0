#include <algorithm>
#include <string_view>

#include "op.h"

namespace opfuse {
namespace {

std::vector<OpKind const*>& mutable_kinds() {
    static std::vector<OpKind const*> kinds;
    return kinds;
}

std::string_view name_of(OpKind const* kind) { return kind->traits().name; }

}  // namespace

std::vector<OpKind const*> const& op_kinds() { return mutable_kinds(); }

OpKind const* find_op_kind(std::string_view name) {
    for (OpKind const* kind : op_kinds())
        if (name_of(kind) == name) return kind;
    return nullptr;
}

void register_op_kind(OpKind const* kind) {
    auto& kinds = mutable_kinds();
    auto const before = [](OpKind const* a, OpKind const* b) { return name_of(a) < name_of(b); };
    kinds.insert(std::lower_bound(kinds.begin(), kinds.end(), kind, before), kind);
}

bool Op::takes(size_t inputs, size_t outputs) const {
    OpTraits const& t = traits();
    return inputs >= static_cast<size_t>(t.min_inputs) &&
           inputs <= static_cast<size_t>(t.max_inputs) && outputs == static_cast<size_t>(t.outputs);
}

bool Op::supports(size_t at, std::span<DataType const> all, size_t inputs) const {
    if (at >= all.size() || inputs > all.size() || !takes(inputs, all.size() - inputs))
        return false;
    if (at < inputs) return accepts(at, all.first(at + 1));
    std::vector<DataType> out(all.size() - inputs);
    types(all.first(inputs), out);
    return all[at] == out[at - inputs];
}

}  // namespace opfuse
