// libopfuse_plugins.so: what TensorRT's IPluginRegistry::loadLibrary() looks for, and so what
// trtexec --dynamicPlugins and an engine with embedded plugins use.  It refers to no TensorRT
// symbol.
#include "../core/error.h"
#include "plugin.h"

// TENSORRTAPI is empty outside NVIDIA's own build, so the visibility is spelt here.
#define OPFUSE_EXPORT extern "C" __attribute__((visibility("default")))

OPFUSE_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
    using List = nvinfer1::IPluginCreatorInterface* const*;
    count = 0;
    return opfuse::guarded("getCreators", List{nullptr}, [&] {
        auto const& all = opfuse::trt::creators();
        count = static_cast<int32_t>(all.size());
        return all.data();
    });
}

// Required by loadLibrary(), and left unused: see `reported` in plugin.h.
OPFUSE_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder*) {}
