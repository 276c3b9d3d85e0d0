// Loads an engine that opfuse built, and the plugin library where the engine does not hold it,
// lists inputs and outputs, and runs it once on random input:
//
//   loader ENGINE [--plugins libopfuse_plugins.so] [--shape NAME:1x128]...
//
// Exit codes are opfuse's: 2 bad input, 3 no GPU or another TensorRT, 4 TensorRT refuses.
#include <NvInferRuntime.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;

struct Failure : std::runtime_error {
    Failure(int code, std::string const& what) : std::runtime_error(what), code(code) {}
    int code;
};

void check(cudaError_t status, char const* what) {
    if (status != cudaSuccess)
        throw Failure(3, std::string(what) + ": " + cudaGetErrorString(status));
}

class Log : public nvinfer1::ILogger {
    void log(Severity severity, char const* message) noexcept override {
        if (severity <= Severity::kWARNING) std::fprintf(stderr, "TensorRT: %s\n", message);
    }
};

struct Free {
    void operator()(void* memory) const { cudaFree(memory); }
};

struct Arguments {
    std::string engine, plugins;
    std::map<std::string, Dims> shapes;
};

Dims parse_dims(std::string const& text) {
    Dims dims{};
    for (char const* at = text.c_str(); *at;) {
        char* end = nullptr;
        long const size = std::strtol(at, &end, 10);
        if (end == at || size < 1 || dims.nbDims == Dims::MAX_DIMS || (*end && *end != 'x'))
            throw Failure(2, "cannot read the shape " + text + ": write 1x128");
        dims.d[dims.nbDims++] = size;
        at = *end ? end + 1 : end;
    }
    return dims;
}

Arguments parse(int count, char** values) {
    Arguments found;
    for (int index = 1; index < count; ++index) {
        std::string const word = values[index];
        bool const option = word == "--plugins" || word == "--shape";
        if (option && index + 1 == count) throw Failure(2, word + " needs a value");
        if (word == "--plugins") {
            found.plugins = values[++index];
        } else if (word == "--shape") {
            std::string const text = values[++index];
            std::size_t const colon = text.rfind(':');
            if (colon == std::string::npos) throw Failure(2, "--shape takes NAME:1x128");
            found.shapes[text.substr(0, colon)] = parse_dims(text.substr(colon + 1));
        } else if (word.rfind("--", 0) == 0 || !found.engine.empty()) {
            throw Failure(2, "unknown argument " + word);
        } else {
            found.engine = word;
        }
    }
    if (found.engine.empty())
        throw Failure(2, "usage: loader ENGINE [--plugins LIBRARY] [--shape NAME:1x128]...");
    return found;
}

std::vector<char> read(std::string const& path) {
    std::ifstream file(path, std::ios::binary);
    std::vector<char> bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    if (!file || bytes.empty()) throw Failure(2, "cannot read " + path);
    return bytes;
}

// The classes of TensorRT's headers fit its library of the same major version only: with another
// one calls land in the wrong function. getInferLibVersion is plain C and always safe.
void check_version() {
    int const version = getInferLibVersion();
    std::printf("TensorRT %d.%d.%d, compiled with the headers of %d.%d\n", version / 10000,
                version / 100 % 100, version % 100, NV_TENSORRT_MAJOR, NV_TENSORRT_MINOR);
    if (version / 10000 != NV_TENSORRT_MAJOR)
        throw Failure(3, "this is another TensorRT than the headers: compile with its own");
}

void load_plugins(std::string const& path) {
    nvinfer1::IPluginRegistry* registry = getPluginRegistry();
    if (!registry->loadLibrary(path.c_str()))
        throw Failure(3, "TensorRT cannot load the plugin library " + path);
    int count = 0;
    nvinfer1::IPluginCreatorInterface* const* creators = registry->getAllCreators(&count);
    for (int index = 0; index < count; ++index) {
        auto const* creator = static_cast<nvinfer1::IPluginCreatorV3One const*>(creators[index]);
        if (std::strcmp(creators[index]->getInterfaceInfo().kind, "PLUGIN CREATOR_V3ONE") == 0 &&
            std::strcmp(creator->getPluginNamespace(), "opfuse") == 0)
            std::printf("plugin %s %s\n", creator->getPluginName(), creator->getPluginVersion());
    }
}

void require_gpu() {
    int count = 0;
    cudaError_t const status = cudaGetDeviceCount(&count);
    if (status != cudaSuccess || count == 0)
        throw Failure(3, std::string("engines run on an NVIDIA GPU, and there is none: ") +
                             cudaGetErrorString(status));
}

std::size_t size_of(DataType type) {
    switch (type) {
    case DataType::kFLOAT:
    case DataType::kINT32: return 4;
    case DataType::kHALF:
    case DataType::kBF16: return 2;
    case DataType::kINT64: return 8;
    case DataType::kINT8:
    case DataType::kUINT8:
    case DataType::kBOOL: return 1;
    default: throw Failure(4, "an input or output has a type that this example does not fill");
    }
}

std::size_t volume(Dims const& dims) {
    std::size_t total = 1;
    for (int axis = 0; axis < dims.nbDims; ++axis) total *= static_cast<std::size_t>(dims.d[axis]);
    return total;
}

std::string text_of(Dims const& dims) {
    std::string text;
    for (int axis = 0; axis < dims.nbDims; ++axis)
        text += (axis ? "x" : "") + std::to_string(dims.d[axis]);
    return dims.nbDims ? text : "scalar";
}

// Floats between -1 and 1; whole numbers 0 or 1, which are indices into any table and valid masks.
std::vector<char> random_values(DataType type, std::size_t count, std::mt19937& source) {
    std::vector<char> bytes(count * size_of(type));
    std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
    for (std::size_t index = 0; index < count; ++index) {
        float const value = uniform(source);
        std::int64_t const whole = value > 0;
        __half const half = __float2half(value);
        __nv_bfloat16 const bfloat = __float2bfloat16(value);
        void const* from = type == DataType::kFLOAT  ? static_cast<void const*>(&value)
                           : type == DataType::kHALF ? static_cast<void const*>(&half)
                           : type == DataType::kBF16 ? static_cast<void const*>(&bfloat)
                                                     : &whole;  // its low bytes come first
        std::memcpy(&bytes[index * size_of(type)], from, size_of(type));
    }
    return bytes;
}

double value_at(DataType type, char const* at) {
    auto const as = [at](auto value) {
        std::memcpy(&value, at, sizeof value);
        return value;
    };
    switch (type) {
    case DataType::kFLOAT: return as(float{});
    case DataType::kHALF: return __half2float(as(__half{}));
    case DataType::kBF16: return __bfloat162float(as(__nv_bfloat16{}));
    case DataType::kINT32: return as(std::int32_t{});
    case DataType::kINT64: return static_cast<double>(as(std::int64_t{}));
    default: return as(std::int8_t{});
    }
}

void run(nvinfer1::ICudaEngine& engine, Arguments const& arguments) {
    std::unique_ptr<nvinfer1::IExecutionContext> context{engine.createExecutionContext()};
    if (!context) throw Failure(4, "TensorRT makes no execution context");
    std::map<std::string, std::unique_ptr<void, Free>> memory;
    std::mt19937 source{0};
    auto const allocate = [&](char const* name, std::size_t size) {
        void* place = nullptr;
        check(cudaMalloc(&place, size ? size : 1), "cudaMalloc");
        memory[name].reset(place);
        if (!context->setTensorAddress(name, place)) throw Failure(4, "TensorRT takes no address");
        return place;
    };
    for (int index = 0; index < engine.getNbIOTensors(); ++index) {
        char const* name = engine.getIOTensorName(index);
        if (engine.getTensorIOMode(name) != nvinfer1::TensorIOMode::kINPUT) continue;
        auto const given = arguments.shapes.find(name);
        Dims const usual = engine.getProfileShape(name, 0, nvinfer1::OptProfileSelector::kOPT);
        Dims const dims = given == arguments.shapes.end() ? usual : given->second;
        if (!context->setInputShape(name, dims))
            throw Failure(2, std::string(name) + " cannot be " + text_of(dims));
        DataType const type = engine.getTensorDataType(name);
        std::vector<char> const values = random_values(type, volume(dims), source);
        check(cudaMemcpy(allocate(name, values.size()), values.data(), values.size(),
                         cudaMemcpyHostToDevice),
              "cudaMemcpy");
    }
    std::map<std::string, std::vector<char>> results;
    for (int index = 0; index < engine.getNbIOTensors(); ++index) {
        char const* name = engine.getIOTensorName(index);
        if (engine.getTensorIOMode(name) != nvinfer1::TensorIOMode::kOUTPUT) continue;
        Dims const dims = context->getTensorShape(name);
        results[name].resize(volume(dims) * size_of(engine.getTensorDataType(name)));
        allocate(name, results[name].size());
    }
    cudaStream_t stream = nullptr;
    check(cudaStreamCreate(&stream), "cudaStreamCreate");
    if (!context->enqueueV3(stream)) throw Failure(4, "TensorRT does not run the engine");
    check(cudaStreamSynchronize(stream), "the run");
    cudaStreamDestroy(stream);
    for (auto& [name, bytes] : results) {
        check(cudaMemcpy(bytes.data(), memory[name].get(), bytes.size(), cudaMemcpyDeviceToHost),
              "cudaMemcpy");
        DataType const type = engine.getTensorDataType(name.c_str());
        double sum = 0;
        for (std::size_t at = 0; at < bytes.size(); at += size_of(type))
            sum += value_at(type, &bytes[at]);
        std::printf("%s: %s, sum %g\n", name.c_str(),
                    text_of(context->getTensorShape(name.c_str())).c_str(), sum);
    }
}

void load_and_run(Arguments const& arguments) {
    std::vector<char> const plan = read(arguments.engine);
    check_version();
    if (!arguments.plugins.empty()) load_plugins(arguments.plugins);
    require_gpu();
    Log log;
    std::unique_ptr<nvinfer1::IRuntime> runtime{nvinfer1::createInferRuntime(log)};
    if (!runtime) throw Failure(4, "TensorRT makes no runtime");
    // An engine with an embedded plugin library runs code of its own: load none that you do not
    // trust.
    runtime->setEngineHostCodeAllowed(true);
    std::unique_ptr<nvinfer1::ICudaEngine> engine{
        runtime->deserializeCudaEngine(plan.data(), plan.size())};
    if (!engine) throw Failure(4, "TensorRT refuses " + arguments.engine);
    for (int index = 0; index < engine->getNbIOTensors(); ++index) {
        char const* name = engine->getIOTensorName(index);
        bool const input = engine->getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT;
        std::printf("%s %s: %s\n", input ? "input" : "output", name,
                    text_of(engine->getTensorShape(name)).c_str());
    }
    run(*engine, arguments);
}

}  // namespace

int main(int count, char** values) {
    try {
        load_and_run(parse(count, values));
        return 0;
    } catch (Failure const& failure) {
        std::fprintf(stderr, "loader: %s\n", failure.what());
        return failure.code;
    }
}
