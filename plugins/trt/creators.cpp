#include "plugin.h"

// Which TensorRT headers the library was compiled against; asked over the C ABI.
extern "C" __attribute__((visibility("default"))) int32_t opfuse_tensorrt_headers() {
    return NV_TENSORRT_VERSION;
}

namespace opfuse::trt {

std::vector<nvinfer1::IPluginCreatorInterface*> const& creators() {
    static auto const all = [] {
        std::vector<nvinfer1::IPluginCreatorInterface*> list;
        for (OpKind const* kind : op_kinds()) {
            static std::vector<std::unique_ptr<Creator>> owners;
            list.push_back(owners.emplace_back(std::make_unique<Creator>(*kind)).get());
        }
        return list;
    }();
    return all;
}

}  // namespace opfuse::trt
