// An op as the adaptors see it, and what makes one out of a room's plain struct.
//
// A room (plugins/<op>/op.cpp) writes a struct and one OPFUSE_REGISTER_OP line:
//   kTraits                     name, version, inputs, outputs
//   fields(), check()           its attributes, and whether their values make sense
//   accepts(i, types)           may input i have types[i], given types[0..i)?
//   types(in, out)              output types
//   shapes(in, out, math)       output shapes; throws where known dimensions contradict
//   run(call)                   launches on call.stream; no allocation, no synchronisation
//   workspace(inputs)           optional: bytes of scratch memory for these inputs at most
//   tactics(inputs)             optional, with an attribute `tactic`: ways to compute, 0 is its
//   choice
#pragma once
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "attributes.h"
#include "types.h"

namespace opfuse {

struct OpTraits {
    char const* name;
    char const* version;
    int min_inputs;
    int max_inputs;  // trailing inputs beyond min_inputs may be absent
    int outputs;
};

class Op {
  public:
    virtual ~Op() = default;
    virtual OpTraits const& traits() const = 0;
    virtual std::unique_ptr<Op> clone() const = 0;
    virtual std::vector<AttributeView> attributes() const = 0;
    virtual bool accepts(size_t input, std::span<DataType const> types) const = 0;
    virtual void types(std::span<DataType const> in, std::span<DataType> out) const = 0;
    virtual void shapes(std::span<Shape const> in, std::span<Shape> out, DimMath& math) const = 0;
    virtual size_t workspace(std::span<Tensor const> inputs) const = 0;
    // Values of its attribute `tactic` that are worth timing for these inputs, other than 0.  Each
    // gives right results for any inputs.  Tensors have no data.
    virtual std::vector<int32_t> tactics(std::span<Tensor const> inputs) const = 0;
    virtual void set_tactic(int32_t tactic) = 0;
    virtual cudaError_t run(Call const& call) const = 0;

    bool takes(size_t inputs, size_t outputs) const;
    // Is position `at` of [inputs..., outputs...] well typed?  Positions after `at` are not read.
    bool supports(size_t at, std::span<DataType const> types, size_t inputs) const;
};

class OpKind {
  public:
    virtual ~OpKind() = default;
    virtual OpTraits const& traits() const = 0;
    virtual std::vector<AttributeInfo> attributes() const = 0;
    virtual std::unique_ptr<Op> create(std::span<Attribute const> given) const = 0;
};

// Every op of the library, sorted by name.
std::vector<OpKind const*> const& op_kinds();
OpKind const* find_op_kind(std::string_view name);
void register_op_kind(OpKind const* kind);

template <class Room>
class OpOf final : public Op {
  public:
    explicit OpOf(Room room) : room_(std::move(room)) {}

    OpTraits const& traits() const override { return Room::kTraits; }
    std::unique_ptr<Op> clone() const override { return std::make_unique<OpOf>(room_); }
    std::vector<AttributeView> attributes() const override { return view_attributes(room_); }
    bool accepts(size_t input, std::span<DataType const> types) const override {
        return room_.accepts(input, types);
    }
    void types(std::span<DataType const> in, std::span<DataType> out) const override {
        room_.types(in, out);
    }
    void shapes(std::span<Shape const> in, std::span<Shape> out, DimMath& math) const override {
        room_.shapes(in, out, math);
    }
    size_t workspace(std::span<Tensor const> inputs) const override {
        if constexpr (requires { room_.workspace(inputs); })
            return room_.workspace(inputs);
        else
            return 0;
    }
    std::vector<int32_t> tactics(std::span<Tensor const> inputs) const override {
        if constexpr (requires { room_.tactics(inputs); })
            return room_.tactics(inputs);
        else
            return {};
    }
    void set_tactic(int32_t tactic) override {
        if constexpr (requires { room_.tactic = tactic; }) room_.tactic = tactic;
    }
    cudaError_t run(Call const& call) const override { return room_.run(call); }

  private:
    Room room_;
};

template <class Room>
class OpKindOf final : public OpKind {
  public:
    OpTraits const& traits() const override { return Room::kTraits; }
    std::vector<AttributeInfo> attributes() const override { return list_attributes<Room>(); }
    std::unique_ptr<Op> create(std::span<Attribute const> given) const override {
        return std::make_unique<OpOf<Room>>(read_attributes<Room>(given));
    }
};

template <class Room>
struct Registration {
    Registration() {
        static OpKindOf<Room> const kind;
        register_op_kind(&kind);
    }
};

}  // namespace opfuse

// A room's last line.  The priority puts it before the constructor that hands all ops to TensorRT's
// registry in the self-registering library; the order between translation units is open otherwise.
#define OPFUSE_REGISTER_OP(Room)                                                             \
    namespace {                                                                              \
    __attribute__((init_priority(1000))) ::opfuse::Registration<Room> const registered_op{}; \
    }
