// Stands in for libnvinfer.so.<major> when the self-registering library is linked, so that it gets
// its NEEDED entry on machines without TensorRT.  Never installed, never loaded.
extern "C" void* getPluginRegistry() noexcept { return nullptr; }
