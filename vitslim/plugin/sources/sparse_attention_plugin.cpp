// The TensorRT side: what the builder and the runtime ask of the layer, answered; the work is the launcher's.
//
// Loaded by `trtexec --dynamicPlugins`, `IPluginRegistry::loadLibrary` or from within an engine. TensorRT calls in
// through `getCreators` and `setLoggerFinder`, hence the library needs nothing of TensorRT but its headers.
#include <atomic>
#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <new>

#include <dlfcn.h>

#include <NvInferRuntime.h>

#include "sparse_attention.h"

// TensorRT's own macro exports in TensorRT's own build alone.
#define EXPORTED __attribute__((visibility("default")))

namespace vitslim
{
namespace
{

using namespace nvinfer1;

constexpr char NAME[] = "SparseAttention";
constexpr char VERSION[] = "1";
constexpr char NAMESPACE[] = "vitslim";
constexpr int32_t INPUTS = 4;  // query, key, value, kept
constexpr int32_t KEPT = 3;
constexpr int32_t OUTPUTS = 1;
constexpr int32_t FAILED = 1;

std::atomic<ILoggerFinder*> logger_finder{nullptr};

__attribute__((format(printf, 1, 2))) void complain(const char* format, ...) noexcept
{
    char message[512];
    const int start = std::snprintf(message, sizeof(message), "vitslim::%s: ", NAME);
    va_list values;
    va_start(values, format);
    std::vsnprintf(message + start, sizeof(message) - start, format, values);
    va_end(values);
    ILoggerFinder* finder = logger_finder.load();
    ILogger* logger = finder == nullptr ? nullptr : finder->findLogger();
    if (logger == nullptr)
    {
        std::fprintf(stderr, "%s\n", message);
        return;
    }
    logger->log(ILogger::Severity::kERROR, message);
}

struct Attributes
{
    int32_t tile;
    int32_t prefix;
    float scale;
};

// A size that is not known yet, -1 in a network of dynamic shapes, fits everything.
bool agree(int64_t first, int64_t second)
{
    return first < 0 || second < 0 || first == second;
}

// Whether the sizes of query, key, value and kept fit each other and the kernel.
bool fits(const Dims& query, const Dims& key, const Dims& value, const Dims& kept, const Attributes& attributes)
{
    if (query.nbDims != 4 || key.nbDims != 4 || value.nbDims != 4 || kept.nbDims != 4)
    {
        complain("wanted query, key, value (b, h, n, e) and kept (b, h, tiles, k), given %d, %d, %d and %d dimensions",
            query.nbDims, key.nbDims, value.nbDims, kept.nbDims);
        return false;
    }
    for (int i = 0; i < 4; ++i)
    {
        if (!agree(query.d[i], key.d[i]) || !agree(query.d[i], value.d[i]) || (i < 2 && !agree(query.d[i], kept.d[i])))
        {
            complain("dimension %d differs: query %lld, key %lld, value %lld, kept %lld", i,
                static_cast<long long>(query.d[i]), static_cast<long long>(key.d[i]),
                static_cast<long long>(value.d[i]), static_cast<long long>(kept.d[i]));
            return false;
        }
    }
    if (query.d[3] >= 0 && vitslim_sparse_attention_has(static_cast<int>(query.d[3])) == 0)
    {
        complain("head width %lld; the kernels inside take %s: build the plugin with --widths, or the engine with "
                 "--plugins off",
            static_cast<long long>(query.d[3]), vitslim_sparse_attention_widths());
        return false;
    }
    if (query.d[2] < 0)
    {
        return true;
    }
    const int64_t patches = query.d[2] - attributes.prefix;
    const int64_t tiles = (patches + attributes.tile - 1) / attributes.tile;
    if (patches < 0 || !agree(tiles, kept.d[2]))
    {
        complain("%lld tokens, of them %d prefix, in tiles of %d are %lld tiles; kept has %lld",
            static_cast<long long>(query.d[2]), attributes.prefix, attributes.tile, static_cast<long long>(tiles),
            static_cast<long long>(kept.d[2]));
        return false;
    }
    return true;
}

// The launcher's number of a type, -1 for those it does not take.
int number_of(DataType type)
{
    return type == DataType::kFLOAT ? 0 : type == DataType::kHALF ? 1 : type == DataType::kBF16 ? 2 : -1;
}

class Plugin final : public IPluginV3, public IPluginV3OneCore, public IPluginV3OneBuild, public IPluginV3OneRuntime
{
public:
    explicit Plugin(const Attributes& attributes) noexcept
        : attributes_(attributes)
        , fields_{{"tile", &attributes_.tile, PluginFieldType::kINT32, 1},
              {"prefix", &attributes_.prefix, PluginFieldType::kINT32, 1},
              {"scale", &attributes_.scale, PluginFieldType::kFLOAT32, 1}}
        , collection_{3, fields_}
    {
        // All digits of the scale, and which kernels: timings of others are worth nothing.
        std::snprintf(described_, sizeof(described_), "tile=%d,prefix=%d,scale=%a,kernels=%s", attributes.tile,
            attributes.prefix, static_cast<double>(attributes.scale), vitslim_kernels_version());
    }

    // The fields point into the object itself.
    Plugin(const Plugin&) = delete;
    Plugin& operator=(const Plugin&) = delete;
    ~Plugin() override = default;

    IPluginCapability* getCapabilityInterface(PluginCapabilityType type) noexcept override
    {
        switch (type)
        {
        case PluginCapabilityType::kCORE: return static_cast<IPluginV3OneCore*>(this);
        case PluginCapabilityType::kBUILD: return static_cast<IPluginV3OneBuild*>(this);
        case PluginCapabilityType::kRUNTIME: return static_cast<IPluginV3OneRuntime*>(this);
        }
        return nullptr;
    }

    IPluginV3* clone() noexcept override
    {
        return new (std::nothrow) Plugin(attributes_);
    }

    // Core

    AsciiChar const* getPluginName() const noexcept override
    {
        return NAME;
    }

    AsciiChar const* getPluginVersion() const noexcept override
    {
        return VERSION;
    }

    AsciiChar const* getPluginNamespace() const noexcept override
    {
        return NAMESPACE;
    }

    // Build

    int32_t getNbOutputs() const noexcept override
    {
        return OUTPUTS;
    }

    int32_t getOutputDataTypes(
        DataType* output_types, int32_t outputs, DataType const* input_types, int32_t inputs) const noexcept override
    {
        if (!counts_fit(inputs, outputs))
        {
            return FAILED;
        }
        output_types[0] = input_types[0];
        return 0;
    }

    int32_t getOutputShapes(DimsExprs const* inputs, int32_t input_count, DimsExprs const*, int32_t, DimsExprs* outputs,
        int32_t output_count, IExprBuilder&) noexcept override
    {
        if (!counts_fit(input_count, output_count))
        {
            return FAILED;
        }
        outputs[0] = inputs[0];
        return 0;
    }

    bool supportsFormatCombination(
        int32_t position, DynamicPluginTensorDesc const* tensors, int32_t, int32_t) noexcept override
    {
        const PluginTensorDesc& tensor = tensors[position].desc;
        if (tensor.format != TensorFormat::kLINEAR)
        {
            return false;
        }
        if (position == KEPT)
        {
            return tensor.type == DataType::kINT32;
        }
        return position == 0 ? number_of(tensor.type) >= 0 : tensor.type == tensors[0].desc.type;
    }

    int32_t configurePlugin(DynamicPluginTensorDesc const* in, int32_t inputs, DynamicPluginTensorDesc const*,
        int32_t outputs) noexcept override
    {
        if (!counts_fit(inputs, outputs))
        {
            return FAILED;
        }
        return fits(in[0].desc.dims, in[1].desc.dims, in[2].desc.dims, in[KEPT].desc.dims, attributes_) ? 0 : FAILED;
    }

    size_t getWorkspaceSize(DynamicPluginTensorDesc const*, int32_t, DynamicPluginTensorDesc const*,
        int32_t) const noexcept override
    {
        return 0;
    }

    char const* getTimingCacheID() noexcept override
    {
        return described_;
    }

    char const* getMetadataString() noexcept override
    {
        return described_;
    }

    // Runtime

    int32_t onShapeChange(
        PluginTensorDesc const* in, int32_t inputs, PluginTensorDesc const*, int32_t outputs) noexcept override
    {
        if (!counts_fit(inputs, outputs))
        {
            return FAILED;
        }
        if (!fits(in[0].dims, in[1].dims, in[2].dims, in[KEPT].dims, attributes_))
        {
            return FAILED;
        }
        // Here, and not at the first launch.
        return done(vitslim_sparse_attention_load(
            number_of(in[0].type), static_cast<int>(in[0].dims.d[3]), attributes_.tile));
    }

    int32_t enqueue(PluginTensorDesc const* in, PluginTensorDesc const*, void const* const* inputs,
        void* const* outputs, void*, cudaStream_t stream) noexcept override
    {
        const Dims& query = in[0].dims;
        const Dims& kept = in[KEPT].dims;
        return done(vitslim_sparse_attention(inputs[0], inputs[1], inputs[2],
            static_cast<const int32_t*>(inputs[KEPT]), outputs[0], number_of(in[0].type), static_cast<int>(query.d[0]),
            static_cast<int>(query.d[1]), static_cast<int>(query.d[2]), static_cast<int>(query.d[3]),
            static_cast<int>(kept.d[2]), static_cast<int>(kept.d[3]), attributes_.tile, attributes_.prefix,
            attributes_.scale, stream));
    }

    IPluginV3* attachToContext(IPluginResourceContext*) noexcept override
    {
        return clone();
    }

    PluginFieldCollection const* getFieldsToSerialize() noexcept override
    {
        return &collection_;
    }

private:
    static int32_t done(int status) noexcept
    {
        if (status != 0)
        {
            complain("the kernel did not start: %s", vitslim_error_text(status));
        }
        return status;
    }

    static bool counts_fit(int32_t inputs, int32_t outputs) noexcept
    {
        if (inputs != INPUTS || outputs != OUTPUTS)
        {
            complain("wanted %d inputs and %d output, given %d and %d", INPUTS, OUTPUTS, inputs, outputs);
            return false;
        }
        return true;
    }

    Attributes attributes_;
    PluginField fields_[3];
    PluginFieldCollection collection_;
    char described_[128];
};

// The one value of a field, or complaint and failure.
template <class T> bool read(const PluginFieldCollection& given, const char* name, PluginFieldType type, T& value)
{
    for (int32_t i = 0; i < given.nbFields; ++i)
    {
        const PluginField& field = given.fields[i];
        if (field.name == nullptr || std::strcmp(field.name, name) != 0)
        {
            continue;
        }
        if (field.type != type || field.length != 1 || field.data == nullptr)
        {
            complain("attribute '%s' has type %d and %d values; wanted type %d and one value", name,
                static_cast<int>(field.type), field.length, static_cast<int>(type));
            return false;
        }
        std::memcpy(&value, field.data, sizeof(value));
        return true;
    }
    complain("attribute '%s' is missing", name);
    return false;
}

class Creator final : public IPluginCreatorV3One
{
public:
    AsciiChar const* getPluginName() const noexcept override
    {
        return NAME;
    }

    AsciiChar const* getPluginVersion() const noexcept override
    {
        return VERSION;
    }

    AsciiChar const* getPluginNamespace() const noexcept override
    {
        return NAMESPACE;
    }

    PluginFieldCollection const* getFieldNames() noexcept override
    {
        return &collection_;
    }

    // The fields are the same whether a network or an engine brings them.
    IPluginV3* createPlugin(AsciiChar const*, PluginFieldCollection const* given, TensorRTPhase) noexcept override
    {
        Attributes attributes{};
        if (given == nullptr || !read(*given, "tile", PluginFieldType::kINT32, attributes.tile)
            || !read(*given, "prefix", PluginFieldType::kINT32, attributes.prefix)
            || !read(*given, "scale", PluginFieldType::kFLOAT32, attributes.scale))
        {
            return nullptr;
        }
        if (attributes.tile < 1 || attributes.prefix < 0 || !std::isfinite(attributes.scale))
        {
            complain("tile=%d, prefix=%d, scale=%g; wanted tile from 1, prefix from 0, a finite scale", attributes.tile,
                attributes.prefix, static_cast<double>(attributes.scale));
            return nullptr;
        }
        return new (std::nothrow) Plugin(attributes);
    }

private:
    PluginField fields_[3] = {{"tile", nullptr, PluginFieldType::kINT32, 1},
        {"prefix", nullptr, PluginFieldType::kINT32, 1}, {"scale", nullptr, PluginFieldType::kFLOAT32, 1}};
    PluginFieldCollection collection_{3, fields_};
};

}  // namespace
}  // namespace vitslim

extern "C" EXPORTED void setLoggerFinder(nvinfer1::ILoggerFinder* finder)
{
    vitslim::logger_finder.store(finder);
}

extern "C" EXPORTED nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count)
{
    static vitslim::Creator creator;
    static nvinfer1::IPluginCreatorInterface* const creators[] = {&creator};
    count = 1;
    return creators;
}

namespace
{
using RegistryGetter = nvinfer1::IPluginRegistry* (*)();

// The registry of the TensorRT that is in the process already; null where there is none. Looked up by name, so that the
// library itself needs no TensorRT.
RegistryGetter findRegistry()
{
    if (void* found = dlsym(RTLD_DEFAULT, "getPluginRegistry"))
    {
        return reinterpret_cast<RegistryGetter>(found);
    }
    // A server's backend loads TensorRT for itself alone.
    for (char const* name : {"libnvinfer.so.11", "libnvinfer.so.10"})
    {
        if (void* library = dlopen(name, RTLD_NOLOAD | RTLD_LAZY))
        {
            return reinterpret_cast<RegistryGetter>(dlsym(library, "getPluginRegistry"));
        }
    }
    return nullptr;
}

// Triton Inference Server only opens plugin libraries. Only when asked, since whoever calls getCreators registers what it
// gives by himself, and a name registered twice is an error.
__attribute__((constructor)) void registerWhenAsked()
{
    char const* asked = std::getenv("VITSLIM_PLUGIN_REGISTER");
    if (asked == nullptr || std::strcmp(asked, "1") != 0)
    {
        return;
    }
    RegistryGetter const getter = findRegistry();
    nvinfer1::IPluginRegistry* const registry = getter == nullptr ? nullptr : getter();
    if (registry == nullptr)
    {
        return;
    }
    // What the registry points to has to stay, whoever closes the library.
    Dl_info self{};
    if (dladdr(reinterpret_cast<void const*>(&registerWhenAsked), &self) != 0)
    {
        dlopen(self.dli_fname, RTLD_NOW | RTLD_NODELETE);
    }
    int32_t count = 0;
    nvinfer1::IPluginCreatorInterface* const* creators = getCreators(count);
    for (int32_t index = 0; index < count; ++index)
    {
        registry->registerCreator(*creators[index], "vitslim");
    }
}
}  // namespace
