// opfuse_contract LIBRARY --list | LIBRARY TEST OP
// Uses one creator of the library as TensorRT would, and says what it does otherwise.
#include <cctype>
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <set>

#include "case.h"

namespace contract {

std::vector<Case>& cases() {
    static std::vector<Case> all;
    return all;
}

namespace {

using nvinfer1::TensorFormat;
using nvinfer1::TensorRTPhase;

constexpr DataType kTypes[] = {DataType::kFLOAT, DataType::kHALF,  DataType::kBF16,
                               DataType::kINT8,  DataType::kINT32, DataType::kINT64,
                               DataType::kBOOL,  DataType::kUINT8, DataType::kFP8};
constexpr DataType kFloating[] = {DataType::kFLOAT, DataType::kHALF, DataType::kBF16};
constexpr TensorFormat kOtherFormats[] = {TensorFormat::kCHW2,  TensorFormat::kHWC8,
                                          TensorFormat::kCHW4,  TensorFormat::kCHW16,
                                          TensorFormat::kCHW32, TensorFormat::kHWC};

struct Subject {
    Library const& library;
    nvinfer1::IPluginCreatorV3One& creator;
    Case const& expected;

    Plugin make(Fields const& given, TensorRTPhase phase = TensorRTPhase::kBUILD) const {
        return Plugin(creator.createPlugin("node", given.collection(), phase));
    }
};

void check(bool condition, std::string const& what) {
    if (!condition) throw std::runtime_error(what);
}

template <class T>
void check_equal(T const& found, T const& expected, std::string const& what) {
    check(found == expected, what);
}

bool allowed(Use const& use, size_t at, DataType type, DataType first) {
    bool const parameter = at < use.roles.size() && use.roles[at] == 'p';
    return type == first || (parameter && type == DataType::kFLOAT);
}

// All tensors linear, of type `first`, with dynamic dimensions.
std::vector<nvinfer1::DynamicPluginTensorDesc> tensors(Use const& use, DataType first) {
    std::vector<nvinfer1::DynamicPluginTensorDesc> out(use.inputs.size() + use.outputs.size());
    for (size_t i = 0; i < out.size(); ++i) {
        bool const input = i < use.inputs.size();
        Dims const& dims = input ? use.inputs[i] : use.outputs[i - use.inputs.size()];
        auto& desc = out[i].desc;
        desc.type = first;
        desc.format = TensorFormat::kLINEAR;
        desc.dims.nbDims = static_cast<int32_t>(dims.size());
        for (size_t k = 0; k < dims.size(); ++k) desc.dims.d[k] = -1;
        out[i].min = out[i].max = desc.dims;
        for (size_t k = 0; k < dims.size(); ++k) out[i].min.d[k] = 1, out[i].max.d[k] = 4096;
        out[i].opt = out[i].max;
    }
    return out;
}

// ---- tests, each run for every creator

void test_identity(Subject const& s) {
    Plugin const plugin = s.make(s.expected.attributes);
    check(plugin != nullptr, s.library.last_error());
    for (std::string const name : {s.creator.getPluginName(), core(plugin).getPluginName()})
        check_equal(name, s.expected.op, "name " + name);
    for (std::string const space :
         {s.creator.getPluginNamespace(), core(plugin).getPluginNamespace()})
        check_equal(space, std::string("opfuse"), "namespace " + space);
    for (std::string const version :
         {s.creator.getPluginVersion(), core(plugin).getPluginVersion()})
        check_equal(version, std::string("1"), "version " + version);
    auto const* listed = s.creator.getFieldNames();
    std::vector<std::string> names;
    for (int32_t i = 0; i < listed->nbFields; ++i) names.push_back(listed->fields[i].name);
    check_equal(names, s.expected.field_names, "the creator lists other fields");
}

void test_defaults(Subject const& s) {
    check(s.make(fields()) != nullptr, "needs an attribute: " + s.library.last_error());
    check(Plugin(s.creator.createPlugin("node", nullptr, TensorRTPhase::kBUILD)) != nullptr,
          "needs a field collection");
}

void test_parser_keys_are_ignored(Subject const& s) {
    Fields given = s.expected.attributes;
    given.add("plugin_version", std::string("1")).add("plugin_namespace", std::string("opfuse"));
    Plugin const plugin = s.make(given);
    check(plugin != nullptr, s.library.last_error());
    auto const written = Fields(*runtime(plugin).getFieldsToSerialize()).texts();
    check_equal(written, s.expected.serialised, "they are written to the engine");
}

void test_refuses_bad_attributes(Subject const& s) {
    check(!s.expected.refusals.empty(), "no refusal in the case");
    for (Refusal const& refusal : s.expected.refusals) {
        check(s.make(refusal.given) == nullptr, "accepted, though " + refusal.message);
        std::string const said = s.library.last_error();
        check(said.find(s.expected.op) == 0, "the message names no op: " + said);
        check(said.find(refusal.message) != std::string::npos, "another message: " + said);
    }
}

void test_refuses_arrays_and_missing_values(Subject const& s) {
    float const two[] = {1.f, 2.f};
    for (std::string const& name : s.expected.field_names) {
        check(!s.make(fields().add(name, PluginFieldType::kFLOAT32, two, 2)),
              name + " as an array");
        nvinfer1::PluginField const empty{name.c_str(), nullptr, PluginFieldType::kFLOAT32, 1};
        nvinfer1::PluginFieldCollection const given{1, &empty};
        check(!Plugin(s.creator.createPlugin("node", &given, TensorRTPhase::kBUILD)),
              name + " without a value");
    }
}

void test_output_types(Subject const& s) {
    Plugin const plugin = s.make(fields());
    for (Use const& use : s.expected.uses) {
        for (DataType const type : kFloating) {
            std::vector<DataType> in(use.inputs.size(), type), out(use.outputs.size());
            for (size_t i = 0; i < in.size(); ++i)
                if (use.roles[i] == 'p') in[i] = DataType::kFLOAT;
            check(
                build(plugin).getOutputDataTypes(out.data(), out.size(), in.data(), in.size()) == 0,
                s.library.last_error());
            check_equal(out, std::vector<DataType>(out.size(), type), "another output type");
        }
    }
}

int32_t infer_shapes(Plugin const& plugin, Use const& use, std::vector<Dims>& found) {
    ExprBuilder builder;
    std::vector<nvinfer1::DimsExprs> in, out(use.outputs.size());
    for (Dims const& dims : use.inputs) in.push_back(builder.parse(dims));
    int32_t const status = build(plugin).getOutputShapes(in.data(), in.size(), nullptr, 0,
                                                         out.data(), out.size(), builder);
    for (size_t i = 0; status == 0 && i < out.size(); ++i) found.push_back(texts(out[i]));
    return status;
}

void test_output_shapes(Subject const& s) {
    Plugin const plugin = s.make(fields());
    for (Use const& use : s.expected.uses) {
        std::vector<Dims> found;
        check(infer_shapes(plugin, use, found) == 0, s.library.last_error());
        check_equal(found, use.outputs, "another output shape");
    }
}

void test_refuses_bad_shapes(Subject const& s) {
    Plugin const plugin = s.make(fields());
    for (Use const& use : s.expected.bad_shapes) {
        std::vector<Dims> found;
        check(infer_shapes(plugin, use, found) != 0, "accepted shapes that contradict");
        check(s.library.last_error().find(s.expected.op) == 0, "the message names no op");
    }
}

void test_types_of_each_position(Subject const& s) {
    Plugin const plugin = s.make(fields());
    for (Use const& use : s.expected.uses) {
        for (DataType const first : kFloating) {
            if (first == DataType::kFLOAT && !s.expected.takes_float) continue;
            auto io = tensors(use, first);
            for (size_t at = 0; at < io.size(); ++at) {
                for (DataType const type : kTypes) {
                    bool const floating = (type == DataType::kFLOAT && s.expected.takes_float) ||
                                          type == DataType::kHALF || type == DataType::kBF16;
                    bool const expected = at == 0 ? floating : allowed(use, at, type, first);
                    io[at].desc.type = type;
                    bool const found = build(plugin).supportsFormatCombination(
                        at, io.data(), use.inputs.size(), use.outputs.size());
                    check(found == expected, "position " + std::to_string(at) + ", type " +
                                                 std::to_string(static_cast<int>(type)));
                }
                io[at].desc.type = first;
            }
        }
    }
}

void test_formats_of_each_position(Subject const& s) {
    Plugin const plugin = s.make(fields());
    for (Use const& use : s.expected.uses) {
        auto io = tensors(use, DataType::kHALF);
        for (size_t at = 0; at < io.size(); ++at) {
            for (TensorFormat const format : kOtherFormats) {
                io[at].desc.format = format;
                check(!build(plugin).supportsFormatCombination(at, io.data(), use.inputs.size(),
                                                               use.outputs.size()),
                      "a format that is not linear at position " + std::to_string(at));
            }
            io[at].desc.format = TensorFormat::kLINEAR;
        }
    }
}

void test_serialises_and_comes_back(Subject const& s) {
    Plugin plugin = s.make(s.expected.attributes);
    Fields const written(*runtime(plugin).getFieldsToSerialize());
    check_equal(written.texts(), s.expected.serialised, "written otherwise");
    plugin.reset();
    Plugin const loaded = s.make(written, TensorRTPhase::kRUNTIME);
    check(loaded != nullptr, s.library.last_error());
    Fields const again(*runtime(loaded).getFieldsToSerialize());
    check_equal(again.texts(), s.expected.serialised, "changed on the way");
}

void test_clone_outlives_the_original(Subject const& s) {
    Plugin original = s.make(s.expected.attributes);
    runtime(original).getFieldsToSerialize();
    ResourceContext context;
    Plugin const clone(original->clone());
    Plugin const attached(runtime(original).attachToContext(&context));
    original.reset();
    for (Plugin const* plugin : {&clone, &attached}) {
        check(*plugin != nullptr, "no copy");
        auto const written = Fields(*runtime(*plugin).getFieldsToSerialize()).texts();
        check_equal(written, s.expected.serialised, "the copy has other attributes");
        check(core(*plugin).getPluginName() == s.expected.op, "the copy has another name");
    }
}

// Of a configured plugin: each has a number of its own, which the engine keeps.
void check_tactics(Plugin const& plugin) {
    std::vector<int32_t> tactics(build(plugin).getNbTactics());
    check(build(plugin).getValidTactics(tactics.data(), tactics.size()) == 0, "lists no tactics");
    std::set<int32_t> const different(tactics.begin(), tactics.end());
    check(different.size() == tactics.size() && !different.contains(0), "0, or one twice");
    for (int32_t const tactic : {tactics.at(0), 0}) {  // 0 changes nothing
        check(runtime(plugin).setTactic(tactic) == 0, "refuses a tactic");
        auto const written = Fields(*runtime(plugin).getFieldsToSerialize()).texts();
        check_equal(written.back(), "tactic=" + std::to_string(tactics[0]), "not kept");
    }
}

void test_workspace_and_tactics(Subject const& s) {
    Plugin const plugin = s.make(fields());
    for (Use const& use : s.expected.uses) {
        auto const io = tensors(use, DataType::kHALF);
        auto const* out = io.data() + use.inputs.size();
        check(build(plugin).configurePlugin(io.data(), use.inputs.size(), out,
                                            use.outputs.size()) == 0,
              s.library.last_error());
        size_t const bytes =
            build(plugin).getWorkspaceSize(io.data(), use.inputs.size(), out, use.outputs.size());
        check(bytes < size_t{1} << 40, "asks for " + std::to_string(bytes) + " bytes");
    }
    check(s.expected.has_tactics || build(plugin).getNbTactics() == 0, "has unknown tactics");
    if (s.expected.has_tactics) check_tactics(plugin);
}

// A dimension of a Use as a number: columns are 8, everything else that has a name is `rows`.
int64_t size_of(std::string const& text, int64_t rows) {
    if (std::isdigit(static_cast<unsigned char>(text[0]))) return std::stoll(text);
    if (text.rfind("cols", 0) != 0) return rows;
    return text == "cols" ? 8 : 4;
}

std::vector<nvinfer1::PluginTensorDesc> sized(Use const& use, int64_t rows) {
    std::vector<nvinfer1::PluginTensorDesc> io;
    auto const described = tensors(use, DataType::kBF16);
    for (size_t i = 0; i < described.size(); ++i) {
        size_t const inputs = use.inputs.size();
        auto const& dims = i < inputs ? use.inputs[i] : use.outputs[i - inputs];
        io.push_back(described[i].desc);
        for (size_t k = 0; k < dims.size(); ++k) io[i].dims.d[k] = size_of(dims[k], rows);
    }
    return io;
}

void test_enqueue_of_zero_rows(Subject const& s) {
    Plugin const plugin = s.make(fields());
    for (Use const& use : s.expected.uses) {
        if (use.inputs[0].size() < 2) continue;
        auto const io = sized(use, 0);
        std::vector<void const*> const in(use.inputs.size(), nullptr);
        std::vector<void*> const out(use.outputs.size(), nullptr);
        auto& run = runtime(plugin);
        check(run.onShapeChange(io.data(), in.size(), io.data() + in.size(), out.size()) == 0,
              s.library.last_error());
        check(run.enqueue(io.data(), io.data() + in.size(), in.data(), out.data(), nullptr,
                          nullptr) == 0,
              s.library.last_error());
    }
}

// Symbols that the builder could not tell apart may turn out to differ when the engine runs.
void test_refuses_sizes_that_contradict(Subject const& s) {
    Plugin const plugin = s.make(fields());
    for (Use const& use : s.expected.uses) {
        auto const io = sized(use, 3);
        int32_t const ins = static_cast<int32_t>(use.inputs.size());
        int32_t const outs = static_cast<int32_t>(use.outputs.size());
        auto change = [&](std::vector<nvinfer1::PluginTensorDesc> const& descs) {
            return runtime(plugin).onShapeChange(descs.data(), ins, descs.data() + ins, outs);
        };
        check(change(io) == 0, s.library.last_error());
        for (size_t i = 1; i < io.size(); ++i) {
            auto other = io;
            other[i].dims.d[other[i].dims.nbDims - 1] += 1;
            check(change(other) != 0, "tensor " + std::to_string(i) + " with a column more");
        }
        auto retyped = io;
        retyped[ins].type = DataType::kINT32;
        check(change(retyped) != 0, "an output of another type");
    }
}

void test_refuses_another_arity(Subject const& s) {
    Plugin const plugin = s.make(fields());
    Use use = s.expected.uses.back();
    while (use.inputs.size() < 9) use.inputs.push_back(use.inputs[0]);
    auto const io = tensors(use, DataType::kFLOAT);
    std::vector<nvinfer1::PluginTensorDesc> desc;
    for (auto const& tensor : io) desc.push_back(tensor.desc);
    std::vector<DataType> in(9, DataType::kFLOAT), types(use.outputs.size());
    std::vector<Dims> shapes;
    int32_t const outs = static_cast<int32_t>(types.size());
    check(build(plugin).getOutputDataTypes(types.data(), outs, in.data(), 9) != 0, "types of 9");
    check(infer_shapes(plugin, use, shapes) != 0, "shapes of 9");
    check(build(plugin).configurePlugin(io.data(), 9, io.data() + 9, outs) != 0, "configure 9");
    check(!build(plugin).supportsFormatCombination(0, io.data(), 9, outs), "formats of 9");
    check(!build(plugin).supportsFormatCombination(-1, io.data(), 9, outs), "position -1");
    check(runtime(plugin).onShapeChange(desc.data(), 9, desc.data() + 9, outs) != 0, "change 9");
    check(
        runtime(plugin).enqueue(desc.data(), desc.data(), nullptr, nullptr, nullptr, nullptr) != 0,
        "enqueue of 9");
}

std::map<std::string, void (*)(Subject const&)> const kTests = {
    {"identity", test_identity},
    {"defaults", test_defaults},
    {"parser_keys_are_ignored", test_parser_keys_are_ignored},
    {"refuses_bad_attributes", test_refuses_bad_attributes},
    {"refuses_arrays_and_missing_values", test_refuses_arrays_and_missing_values},
    {"output_types", test_output_types},
    {"output_shapes", test_output_shapes},
    {"refuses_bad_shapes", test_refuses_bad_shapes},
    {"types_of_each_position", test_types_of_each_position},
    {"formats_of_each_position", test_formats_of_each_position},
    {"serialises_and_comes_back", test_serialises_and_comes_back},
    {"clone_outlives_the_original", test_clone_outlives_the_original},
    {"workspace_and_tactics", test_workspace_and_tactics},
    {"enqueue_of_zero_rows", test_enqueue_of_zero_rows},
    {"refuses_sizes_that_contradict", test_refuses_sizes_that_contradict},
    {"refuses_another_arity", test_refuses_another_arity},
};

Case const& case_of(std::string const& op) {
    for (Case const& c : cases())
        if (c.op == op) return c;
    throw std::runtime_error(op + " has no file in contract/cases");
}

void list(Library const& library) {
    for (auto* creator : library.creators())
        for (auto const& [name, test] : kTests)
            std::printf("%s %s\n", name.c_str(), creator->getPluginName());
}

void run(Library const& library, std::string const& test, std::string const& op) {
    for (auto* creator : library.creators())
        if (creator->getPluginName() == op)
            return kTests.at(test)({library, *creator, case_of(op)});
    throw std::runtime_error("no creator of " + op);
}

}  // namespace
}  // namespace contract

int main(int argc, char** argv) {
    try {
        if (argc < 3) throw std::runtime_error("usage: opfuse_contract LIBRARY --list | TEST OP");
        contract::Library const library(argv[1]);
        if (std::strcmp(argv[2], "--list") == 0)
            contract::list(library);
        else
            contract::run(library, argv[2], argc > 3 ? argv[3] : "");
    } catch (std::exception const& error) {
        std::fprintf(stderr, "FAILED: %s\n", error.what());
        return 1;
    }
    return 0;
}
