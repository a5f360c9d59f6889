// The calls of CUDA's driver that a launch takes, with the kernel of one set of macros run on the CPU. What comes to
// cuModuleLoadData is machine code for a GPU, so that only its beginning is looked at.
#include "sparse_attention_aot.cu"

#include <cstring>

namespace
{

struct Arguments
{
    const void* query;
    const void* key;
    const void* value;
    const int* kept;
    int tokens;
    int tiles;
    int keys;
    void* mixed;
} given;

int contexts;  // 0 as in a thread that has none
int module_place;

void bridge(vitslim::Problem)
{
    vitslim_sparse_attention_kernel(
        given.query, given.key, given.value, given.kept, given.tokens, given.tiles, given.keys, given.mixed);
}

template <class T> T read(void** places, int place)
{
    return *static_cast<T*>(places[place]);
}

}  // namespace

extern "C" int cuCtxGetCurrent(void** context)
{
    *context = contexts != 0 ? &contexts : nullptr;
    return 0;
}

extern "C" int cuDeviceGet(int* device, int ordinal)
{
    *device = 40 + ordinal;
    return ordinal == 0 ? 0 : 101;  // CUDA_ERROR_INVALID_DEVICE
}

extern "C" int cuDevicePrimaryCtxRetain(void** context, int device)
{
    *context = &contexts;
    return device == 40 ? 0 : 101;
}

extern "C" int cuCtxSetCurrent(void* context)
{
    contexts += context == &contexts;
    return 0;
}

extern "C" int contexts_entered()
{
    return contexts;
}

extern "C" int cuModuleLoadData(void** module, const void* image)
{
    *module = &module_place;
    const bool known = std::memcmp(image, "\177ELF", 4) == 0 || std::strstr(static_cast<const char*>(image), ".version");
    return known ? 0 : 209;  // CUDA_ERROR_NO_BINARY_FOR_GPU
}

extern "C" int cuModuleGetFunction(void** function, void* module, const char* name)
{
    *function = reinterpret_cast<void*>(&bridge);
    return module == &module_place && std::strcmp(name, "vitslim_sparse_attention_kernel") == 0 ? 0 : 500;
}

extern "C" int cuLaunchKernel(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
    unsigned block_y, unsigned block_z, unsigned shared, void* stream, void** places, void** extra)
{
    if (grid_y != 1 || grid_z != 1 || block_y != 1 || block_z != 1 || shared != 0 || extra != nullptr)
    {
        return 1;  // CUDA_ERROR_INVALID_VALUE
    }
    given = {read<void*>(places, 0), read<void*>(places, 1), read<void*>(places, 2), read<int*>(places, 3),
        read<int>(places, 4), read<int>(places, 5), read<int>(places, 6), read<void*>(places, 7)};
    vitslim::Problem unread = {};
    void* arguments[] = {&unread};
    return cudaLaunchKernel(function, dim3(grid_x), dim3(block_x), arguments, 0, static_cast<cudaStream_t>(stream));
}

extern "C" int cuGetErrorString(int status, const char** text)
{
    *text = status == 209 ? "no kernel image" : status == 101 ? "invalid device" : nullptr;
    return *text == nullptr ? 1 : 0;
}
