// Attributes of an op: one `Field` a member, used for listing, reading, and writing alike.
#pragma once
#include <cmath>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <variant>
#include <vector>

namespace opfuse {

// Numbered as ONNX AttributeProto.AttributeType.
enum class AttributeType : int32_t { kFloat = 1, kInt = 2, kString = 3 };

struct AttributeInfo {
    char const* name;
    AttributeType type;
};

// What a host handed over where an attribute should be, when no op can use it ("3 floats", "DIMS").
struct Unusable {
    std::string what;
};

using AttributeValue = std::variant<double, int64_t, std::string, Unusable>;

struct Attribute {
    std::string name;
    AttributeValue value;
};

// An attribute of a living op; `data` points into the op, `count` is 1 or the string's length.
struct AttributeView {
    AttributeInfo info;
    void const* data;
    size_t count;
};

template <class Op, class T>
struct Field {
    char const* name;
    T Op::* member;
};

namespace detail {

template <class T>
constexpr AttributeType attribute_type() {
    if constexpr (std::is_same_v<T, float>) return AttributeType::kFloat;
    if constexpr (std::is_same_v<T, int64_t>) return AttributeType::kInt;
    if constexpr (std::is_same_v<T, std::string>) return AttributeType::kString;
}

inline char const* type_name(AttributeType type) {
    switch (type) {
    case AttributeType::kFloat: return "FLOAT";
    case AttributeType::kInt: return "INT";
    case AttributeType::kString: return "STRING";
    }
    return "?";
}

inline std::string describe(AttributeValue const& value) {
    static constexpr char const* kNames[] = {"FLOAT", "INT", "STRING"};
    auto const* unusable = std::get_if<Unusable>(&value);
    return unusable ? unusable->what : kNames[value.index()];
}

// An INT serves for a FLOAT: Python's `epsilon=0` reaches the ONNX node as an INT.
inline bool assign(float& to, AttributeValue const& from) {
    if (auto const* real = std::get_if<double>(&from)) return to = static_cast<float>(*real), true;
    if (auto const* integer = std::get_if<int64_t>(&from))
        return to = static_cast<float>(*integer), true;
    return false;
}

inline bool assign(int64_t& to, AttributeValue const& from) {
    auto const* integer = std::get_if<int64_t>(&from);
    return integer && (to = *integer, true);
}

// TensorRT's parser sends strings with their trailing NUL, onnx without.
inline bool assign(std::string& to, AttributeValue const& from) {
    auto const* text = std::get_if<std::string>(&from);
    return text && (to = text->substr(0, text->find('\0')), true);
}

// The keys that the ONNX parser itself reads; every op carries them and none needs them.
inline bool is_parser_key(std::string_view name) {
    return name == "plugin_version" || name == "plugin_namespace";
}

template <class Op, class T>
bool read_field(Op& op, Field<Op, T> const& field, Attribute const& given) {
    if (given.name != field.name) return false;
    if (assign(op.*field.member, given.value)) return true;
    throw std::invalid_argument("attribute '" + given.name + "' is " + describe(given.value) +
                                ", need " + type_name(attribute_type<T>()));
}

}  // namespace detail

template <class Op>
std::vector<AttributeInfo> list_attributes() {
    std::vector<AttributeInfo> infos;
    auto const list = [&]<class T>(Field<Op, T> const& field) {
        infos.push_back({field.name, detail::attribute_type<T>()});
    };
    std::apply([&](auto const&... field) { (list(field), ...); }, Op::fields());
    return infos;
}

// Throws std::invalid_argument that names the attribute: wrong type, unknown name, or refused
// value.
template <class Op>
Op read_attributes(std::span<Attribute const> given) {
    Op op{};
    for (Attribute const& attribute : given) {
        bool const used = std::apply(
            [&](auto const&... field) {
                return (detail::read_field(op, field, attribute) || ... || false);
            },
            Op::fields());
        if (!used && !detail::is_parser_key(attribute.name))
            throw std::invalid_argument("unknown attribute '" + attribute.name + "'");
    }
    op.check();
    return op;
}

template <class Op>
std::vector<AttributeView> view_attributes(Op const& op) {
    std::vector<AttributeView> views;
    auto const view = [&]<class T>(Field<Op, T> const& field) {
        auto const& member = op.*field.member;
        AttributeInfo const info{field.name, detail::attribute_type<T>()};
        if constexpr (std::is_same_v<T, std::string>)
            views.push_back({info, member.data(), member.size()});
        else
            views.push_back({info, &member, 1});
    };
    std::apply([&](auto const&... field) { (view(field), ...); }, Op::fields());
    return views;
}

inline void check_epsilon(float epsilon) {
    if (!std::isfinite(epsilon) || epsilon < 0.f)
        throw std::invalid_argument("attribute 'epsilon' is " + std::to_string(epsilon) +
                                    ", need a finite number of at least 0");
}

}  // namespace opfuse
