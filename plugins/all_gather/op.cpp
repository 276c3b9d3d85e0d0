#include "../core/op.h"

#include "../all_reduce/launch.h"
#include "../communicator/group.h"
#include "../core/shapes.h"

namespace opfuse {

struct AllGather {
    static constexpr OpTraits kTraits{"AllGather", "1", 1, 1, 1};  // x -> y, all ranks' x

    int64_t axis = 0;  // along which they are joined; from the last where negative
    int64_t group_size = 1;

    static auto fields() {
        return std::tuple(Field<AllGather, int64_t>{"axis", &AllGather::axis},
                          Field<AllGather, int64_t>{"group_size", &AllGather::group_size});
    }
    void check() const {
        need_range("axis", axis, -kMaxRank, kMaxRank - 1);
        check_group_size(group_size);
    }

    int axis_of(int rank) const {
        int64_t const at = axis < 0 ? axis + rank : axis;
        if (at < 0 || at >= rank)
            throw std::invalid_argument("x has " + std::to_string(rank) + " axes, and no axis " +
                                        std::to_string(axis));
        return static_cast<int>(at);
    }

    bool accepts(size_t, std::span<DataType const> types) const { return is_floating(types[0]); }
    void types(std::span<DataType const> in, std::span<DataType> out) const { out[0] = in[0]; }
    void shapes(std::span<Shape const> in, std::span<Shape> out, DimMath& math) const {
        out[0] = in[0];
        Dim& along = out[0].dims[axis_of(in[0].rank)];
        if (group_size > 1) along = math.apply(DimOp::kProd, math.constant(group_size), along);
    }

    cudaError_t run(Call const& call) const {
        Tensor const& x = call.inputs[0];
        int64_t outer = 1;
        for (int i = 0; i < axis_of(x.rank); ++i) outer *= x.dims[i];
        if (x.elements() == 0) return cudaSuccess;
        int64_t const inner = x.elements() / outer;
        if (call.alone) return place(call, outer, inner);
        Communicator const* const group = need_group(group_size);
        if (!group) return place(call, outer, inner);
        if (group->way == Way::kNccl || !group->has_peers)
            return gather_by_nccl(*group, call, outer, inner);
        if (x.type == DataType::kFloat)
            return gather(data<uint32_t>(call.outputs[0]), data<uint32_t>(x), outer, inner,
                          group->peers, call.stream);
        return gather(data<uint16_t>(call.outputs[0]), data<uint16_t>(x), outer, inner,
                      group->peers, call.stream);
    }

  private:
    template <class T>
    static T* data(Tensor const& tensor) {
        return static_cast<T*>(tensor.data);
    }

    static size_t bytes_of(DataType type) { return type == DataType::kFloat ? 4 : 2; }

    // This rank's part alone, where rank 0's would be.
    cudaError_t place(Call const& call, int64_t outer, int64_t inner) const {
        size_t const row = inner * bytes_of(call.inputs[0].type);
        return cudaMemcpy2DAsync(call.outputs[0].data, row * group_size, call.inputs[0].data, row,
                                 row, outer, cudaMemcpyDeviceToDevice, call.stream);
    }

    static cudaError_t gather_by_nccl(Communicator const& group, Call const& call, int64_t outer,
                                      int64_t inner) {
        Nccl const& nccl = group.nccl;
        void* const ranks = group.group;
        if (!ranks) throw std::runtime_error("NCCL is not there, or has been stopped");
        DataType const type = call.inputs[0].type;
        size_t const row = inner * bytes_of(type);
        nccl.check(nccl.group_start(), "ncclGroupStart");
        for (int64_t i = 0; i < outer; ++i)
            nccl.check(nccl.all_gather(data<char>(call.inputs[0]) + i * row,
                                       data<char>(call.outputs[0]) + i * row * group.size, inner,
                                       nccl_type(type), ranks, call.stream),
                       "ncclAllGather");
        nccl.check(nccl.group_end(), "ncclGroupEnd");
        return cudaSuccess;
    }
};

}  // namespace opfuse

OPFUSE_REGISTER_OP(opfuse::AllGather)
