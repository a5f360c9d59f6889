// Asks TensorRT's plugin registry, or the library itself, what a builder and an engine would ask; prints `name=value`
// lines. The Python bindings cannot clone a C++ plugin nor read what it would serialise.
//
// Arguments: plugin library, TensorRT library (or -), tile, prefix, scale.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include <dlfcn.h>

#include <NvInferRuntime.h>

using namespace nvinfer1;

namespace
{

struct Log final : ILogger
{
    void log(Severity severity, AsciiChar const* message) noexcept override
    {
        if (severity <= Severity::kERROR)
        {
            std::printf("error=%s\n", message);
        }
    }
};

Log the_log;

struct Finder final : ILoggerFinder
{
    ILogger* findLogger() override
    {
        return &the_log;
    }
};

Finder the_finder;

void* open(const char* path)
{
    void* library = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
    if (library == nullptr)
    {
        std::printf("failed=%s\n", dlerror());
        std::exit(1);
    }
    return library;
}

void show_fields(const char* title, PluginFieldCollection const* fields)
{
    std::printf("%s=", title);
    for (int i = 0; i < fields->nbFields; ++i)
    {
        const PluginField& field = fields->fields[i];
        std::printf("%s%s:%d:%d", i == 0 ? "" : " ", field.name, static_cast<int>(field.type), field.length);
        if (field.data != nullptr && field.type == PluginFieldType::kINT32)
        {
            std::printf(":%d", *static_cast<const int32_t*>(field.data));
        }
        if (field.data != nullptr && field.type == PluginFieldType::kFLOAT32)
        {
            std::printf(":%a", static_cast<double>(*static_cast<const float*>(field.data)));
        }
    }
    std::printf("\n");
}

template <class Capability> Capability* capability(IPluginV3* plugin, PluginCapabilityType type)
{
    return static_cast<Capability*>(plugin->getCapabilityInterface(type));
}

PluginFieldCollection const* serialised(IPluginV3* plugin)
{
    return capability<IPluginV3OneRuntime>(plugin, PluginCapabilityType::kRUNTIME)->getFieldsToSerialize();
}

DynamicPluginTensorDesc described(std::vector<int64_t> sizes, DataType type, TensorFormat format)
{
    DynamicPluginTensorDesc tensor{};
    tensor.desc.dims.nbDims = static_cast<int32_t>(sizes.size());
    for (size_t i = 0; i < sizes.size(); ++i)
    {
        tensor.desc.dims.d[i] = sizes[i];
    }
    tensor.desc.type = type;
    tensor.desc.format = format;
    return tensor;
}

void show_formats(IPluginV3OneBuild* build)
{
    const DataType types[] = {DataType::kFLOAT, DataType::kHALF, DataType::kBF16, DataType::kINT8, DataType::kINT32};
    for (DataType type : types)
    {
        std::vector<DynamicPluginTensorDesc> tensors(5, described({1, 2, 9, 8}, type, TensorFormat::kLINEAR));
        std::printf("formats of type %d=", static_cast<int>(type));
        for (int position = 0; position < 5; ++position)
        {
            std::printf("%d", build->supportsFormatCombination(position, tensors.data(), 4, 1));
        }
        tensors[3].desc.type = DataType::kINT32;
        tensors[4].desc.format = TensorFormat::kCHW32;
        std::printf(" %d%d", build->supportsFormatCombination(3, tensors.data(), 4, 1),
            build->supportsFormatCombination(4, tensors.data(), 4, 1));
        DataType inputs[] = {type, type, type, DataType::kINT32};
        DataType output = DataType::kBOOL;
        const int failed = build->getOutputDataTypes(&output, 1, inputs, 4);
        std::printf(" %d:%d\n", failed, static_cast<int>(output));
    }
}

int configure(IPluginV3OneBuild* build, std::vector<int64_t> query, std::vector<int64_t> kept)
{
    const DynamicPluginTensorDesc wide = described(query, DataType::kHALF, TensorFormat::kLINEAR);
    const DynamicPluginTensorDesc in[]
        = {wide, wide, wide, described(kept, DataType::kINT32, TensorFormat::kLINEAR)};
    return build->configurePlugin(in, 4, &wide, 1);
}

int change_shapes(IPluginV3OneRuntime* runtime, std::vector<int64_t> query, std::vector<int64_t> kept)
{
    const PluginTensorDesc wide = described(query, DataType::kHALF, TensorFormat::kLINEAR).desc;
    const PluginTensorDesc in[] = {wide, wide, wide, described(kept, DataType::kINT32, TensorFormat::kLINEAR).desc};
    return runtime->onShapeChange(in, 4, &wide, 1);
}

void show_build(IPluginV3OneBuild* build, int tile, int prefix)
{
    std::printf("outputs=%d\n", build->getNbOutputs());
    std::printf("workspace=%zu\n", build->getWorkspaceSize(nullptr, 4, nullptr, 1));
    std::printf("timing=%s\n", build->getTimingCacheID());
    std::printf("metadata=%s\n", build->getMetadataString());
    show_formats(build);

    // Only the addresses of the expressions matter; nothing is computed with them.
    char places[4];
    DimsExprs inputs[4]{};
    for (DimsExprs& dims : inputs)
    {
        dims.nbDims = 4;
        for (int i = 0; i < 4; ++i)
        {
            dims.d[i] = reinterpret_cast<IDimensionExpr const*>(&places[i]);
        }
    }
    DimsExprs output{};
    const int refused = build->getOutputShapes(
        inputs, 4, nullptr, 0, &output, 1, *reinterpret_cast<IExprBuilder*>(places));
    const bool same = output.nbDims == 4 && std::memcmp(output.d, inputs[0].d, 4 * sizeof(output.d[0])) == 0;
    std::printf("shapes=%d:%d\n", refused, same);

    const int64_t tiles = (196 + tile - 1) / tile;
    const int64_t tokens = 196 + prefix;
    std::printf("fits=%d\n", configure(build, {2, 3, tokens, 64}, {2, 3, tiles, 50}));
    std::printf("dynamic=%d\n", configure(build, {-1, 3, -1, 64}, {-1, 3, -1, 50}));
    std::printf("too wide=%d\n", configure(build, {2, 3, tokens, 129}, {2, 3, tiles, 50}));
    std::printf("wrong tiles=%d\n", configure(build, {2, 3, tokens, 64}, {2, 3, tiles + 1, 50}));
    std::printf("wrong heads=%d\n", configure(build, {2, 3, tokens, 64}, {2, 4, tiles, 50}));
}

}  // namespace

int main(int, char** arguments)
{
    const int32_t tile = std::atoi(arguments[3]);
    const int32_t prefix = std::atoi(arguments[4]);
    const float scale = std::strtof(arguments[5], nullptr);
    void* library = open(arguments[1]);
    reinterpret_cast<void (*)(ILoggerFinder*)>(dlsym(library, "setLoggerFinder"))(&the_finder);

    IPluginCreatorInterface* found = nullptr;
    if (std::strcmp(arguments[2], "-") == 0)
    {
        int32_t count = 0;
        auto* creators = reinterpret_cast<IPluginCreatorInterface* const* (*) (int32_t&)>(dlsym(library, "getCreators"));
        found = creators(count)[0];
        std::printf("creators=%d\n", count);
    }
    else
    {
        void* tensorrt = open(arguments[2]);
        auto* registry = reinterpret_cast<IPluginRegistry* (*) ()>(dlsym(tensorrt, "getPluginRegistry"))();
        std::printf("loaded=%d\n", registry->loadLibrary(arguments[1]) != nullptr);
        found = registry->getCreator("SparseAttention", "1", "vitslim");
    }
    if (found == nullptr)
    {
        std::printf("failed=no creator\n");
        return 1;
    }
    std::printf("kind=%s\n", found->getInterfaceInfo().kind);
    auto* creator = static_cast<IPluginCreatorV3One*>(found);
    show_fields("declared", creator->getFieldNames());

    const PluginField fields[] = {{"tile", &tile, PluginFieldType::kINT32, 1},
        {"prefix", &prefix, PluginFieldType::kINT32, 1}, {"scale", &scale, PluginFieldType::kFLOAT32, 1}};
    const PluginFieldCollection given{3, fields};
    IPluginV3* plugin = creator->createPlugin("layer", &given, TensorRTPhase::kBUILD);
    if (plugin == nullptr)
    {
        std::printf("failed=not created\n");
        return 1;
    }
    auto* core = capability<IPluginV3OneCore>(plugin, PluginCapabilityType::kCORE);
    std::printf("core=%s %s %s\n", core->getPluginName(), core->getPluginVersion(), core->getPluginNamespace());
    show_build(capability<IPluginV3OneBuild>(plugin, PluginCapabilityType::kBUILD), tile, prefix);

    // The engine's way: what one plugin serialises makes the next; the first is gone by then.
    IPluginV3* clone = plugin->clone();
    show_fields("serialised", serialised(plugin));
    delete plugin;
    show_fields("clone", serialised(clone));
    IPluginV3* reborn = creator->createPlugin("layer", serialised(clone), TensorRTPhase::kRUNTIME);
    delete clone;
    auto* runtime = capability<IPluginV3OneRuntime>(reborn, PluginCapabilityType::kRUNTIME);
    IPluginV3* attached = runtime->attachToContext(nullptr);
    show_fields("attached", serialised(attached));
    std::printf("loads=%d\n", change_shapes(runtime, {2, 3, 196 + prefix, 64}, {2, 3, (196 + tile - 1) / tile, 50}));
    delete attached;
    delete reborn;

    const PluginFieldCollection without_scale{2, fields};
    std::printf("missing=%d\n", creator->createPlugin("", &without_scale, TensorRTPhase::kBUILD) == nullptr);
    const PluginField mistyped[] = {{"tile", &tile, PluginFieldType::kINT64, 1}, fields[1], fields[2]};
    const PluginFieldCollection wrong{3, mistyped};
    std::printf("mistyped=%d\n", creator->createPlugin("", &wrong, TensorRTPhase::kBUILD) == nullptr);
    const int32_t none = 0;
    const PluginField out_of_range[] = {{"tile", &none, PluginFieldType::kINT32, 1}, fields[1], fields[2]};
    const PluginFieldCollection outside{3, out_of_range};
    std::printf("out of range=%d\n", creator->createPlugin("", &outside, TensorRTPhase::kBUILD) == nullptr);
    return 0;
}
