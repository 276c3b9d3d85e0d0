// libopfuse_plugins_registered.so: registers every op when it is opened, for hosts that only
// dlopen() a file: trtexec --staticPlugins, Triton's --backend-config=tensorrt,plugins=.
// It exports no getCreators, because a library that registers itself and also goes through
// loadLibrary() is refused ("creator exists already").  Never load it beside libopfuse_plugins.so.
//
// getPluginRegistry comes from libnvinfer.so.<major of the headers>, named as NEEDED so that the
// host's loader refuses another major: IPluginRegistry's virtual functions moved in TensorRT 11.
#include "../core/error.h"
#include "plugin.h"

namespace opfuse::trt {
namespace {

__attribute__((constructor)) void register_all() noexcept {
    bool const done = reported("registered plugins", false, [] {
        nvinfer1::IPluginRegistry* registry = getPluginRegistry();
        if (!registry) throw std::runtime_error("TensorRT has no plugin registry");
        for (nvinfer1::IPluginCreatorInterface* creator : creators())
            if (!registry->registerCreator(*creator, kNamespace))
                throw std::runtime_error("TensorRT refused a creator; is opfuse loaded twice?");
        return true;
    });
    static_cast<void>(done);
}

}  // namespace
}  // namespace opfuse::trt
