// The launcher: checks the sizes, picks the compiled kernel for device, type, head width and tile, starts it through
// CUDA's driver. The kernels are Triton's; kernels.inc, which the build writes, has their code and what is known of it.
#include "sparse_attention.h"

#include <algorithm>
#include <atomic>
#include <climits>
#include <cstddef>

#include <cuda.h>
#include <dlfcn.h>

extern "C" const unsigned char vitslim_code[] __attribute__((visibility("hidden")));

namespace vitslim
{
namespace
{

struct Kernel
{
    int capability;  // 90 is 9.0
    int dtype;
    int width;
    int queries;  // of one tile that a program owns
    unsigned threads;
    unsigned shared_bytes;
    const char* entry;
    bool is_ptx;
    size_t begin;  // in vitslim_code
};

// constexpr Kernel KERNELS[], from the oldest architecture to the newest, PTX last; constexpr char WIDTHS[], VERSION[]
#include "kernels.inc"

constexpr size_t COUNT = sizeof(KERNELS) / sizeof(KERNELS[0]);
constexpr int MOST_DEVICES = 64;
constexpr int LARGEST_TILE = 1 << 30;  // so that rounding it up stays an int

// The driver comes with the GPU. It is opened when it is needed, so that the library loads without one.
struct Driver
{
    decltype(&cuCtxGetDevice) get_device = nullptr;
    decltype(&cuDeviceGetAttribute) get_attribute = nullptr;
    decltype(&cuLibraryLoadData) load = nullptr;
    decltype(&cuLibraryGetKernel) get_kernel = nullptr;
    decltype(&cuKernelGetFunction) get_function = nullptr;
    decltype(&cuKernelSetAttribute) set_attribute = nullptr;
    decltype(&cuLaunchKernel) launch = nullptr;
    decltype(&cuThreadExchangeStreamCaptureMode) exchange_capture_mode = nullptr;
    decltype(&cuGetErrorString) error_string = nullptr;
    CUresult status = CUDA_SUCCESS;

    Driver()
    {
        void* const library = dlopen("libcuda.so.1", RTLD_NOW);
        if (library == nullptr)
        {
            status = CUDA_ERROR_NO_DEVICE;
            return;
        }
        find(library, "cuCtxGetDevice", get_device);
        find(library, "cuDeviceGetAttribute", get_attribute);
        find(library, "cuLibraryLoadData", load);
        find(library, "cuLibraryGetKernel", get_kernel);
        find(library, "cuKernelGetFunction", get_function);
        find(library, "cuKernelSetAttribute", set_attribute);
        find(library, "cuLaunchKernel", launch);
        find(library, "cuThreadExchangeStreamCaptureMode", exchange_capture_mode);
        find(library, "cuGetErrorString", error_string);
    }

private:
    template <class T> void find(void* library, const char* name, T& function)
    {
        function = reinterpret_cast<T>(dlsym(library, name));
        if (function == nullptr)
        {
            // Libraries of kernels are known from CUDA 12 on.
            status = CUDA_ERROR_SYSTEM_DRIVER_MISMATCH;
        }
    }
};

const Driver& driver()
{
    static const Driver found;
    return found;
}

// Libraries are the process's own, not a context's. Two threads may load one at the same time; the second copy is left.
std::atomic<CUkernel> loaded[COUNT];
std::atomic<bool> ready[COUNT][MOST_DEVICES];
std::atomic<bool> refused[COUNT];  // code newer than the driver

int own_queries(int dtype, int tile)
{
    return tile <= 16 || dtype == 0 ? 16 : tile <= 32 ? 32 : 64;
}

// Code for 8.0 runs on 8.6 too, but not on 8.7, which is no desktop's; from 9.0 on it is for one architecture alone. PTX
// runs on whatever came later.
bool runs_on(const Kernel& kernel, int capability)
{
    const bool is_desktop = capability / 10 == 8 && capability != 87;
    const bool is_later = is_desktop && kernel.capability / 10 == 8 && kernel.capability <= capability;
    return kernel.capability == capability || is_later || (kernel.is_ptx && kernel.capability <= capability);
}

// The index of the kernel that fits best, COUNT for none: of equal ones the newest code, PTX only where no code runs.
size_t find_kernel(int capability, int dtype, int width, int tile)
{
    size_t best = COUNT;
    for (size_t i = 0; i < COUNT; ++i)
    {
        const Kernel& kernel = KERNELS[i];
        const bool fits = kernel.dtype == dtype && kernel.width == width && kernel.queries == own_queries(dtype, tile)
            && runs_on(kernel, capability) && !refused[i].load();
        if (fits && (best == COUNT || !kernel.is_ptx))
        {
            best = i;
        }
    }
    return best;
}

bool is_of_code(CUresult status)
{
    return status == CUDA_ERROR_INVALID_IMAGE || status == CUDA_ERROR_NO_BINARY_FOR_GPU
        || status == CUDA_ERROR_INVALID_SOURCE || status == CUDA_ERROR_NOT_SUPPORTED;
}

CUresult load_onto(size_t index, CUdevice device)
{
    const Driver& cuda = driver();
    const Kernel& kernel = KERNELS[index];
    CUkernel handle = loaded[index].load();
    if (handle == nullptr)
    {
        CUlibrary library = nullptr;
        const void* const code = vitslim_code + kernel.begin;
        CUresult status = cuda.load(&library, code, nullptr, nullptr, 0, nullptr, nullptr, 0);
        status = status != CUDA_SUCCESS ? status : cuda.get_kernel(&handle, library, kernel.entry);
        if (status != CUDA_SUCCESS)
        {
            return status;
        }
        loaded[index].store(handle);
    }
    const int bytes = static_cast<int>(kernel.shared_bytes);
    const CUresult status
        = cuda.set_attribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, bytes, handle, device);
    // Asking for the function brings the code onto the device now, not at the first launch.
    CUfunction function = nullptr;
    return status != CUDA_SUCCESS ? status : cuda.get_function(&function, handle);
}

// The kernel for the current device, there and ready; its index in KERNELS.
CUresult find_ready(int dtype, int width, int tile, size_t& index)
{
    const Driver& cuda = driver();
    CUdevice device = 0;
    int major = 0;
    int minor = 0;
    CUresult status = cuda.status;
    status = status != CUDA_SUCCESS ? status : cuda.get_device(&device);
    status = status != CUDA_SUCCESS
        ? status
        : cuda.get_attribute(&major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device);
    status = status != CUDA_SUCCESS
        ? status
        : cuda.get_attribute(&minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device);
    if (status != CUDA_SUCCESS)
    {
        return status;
    }
    if (device < 0 || device >= MOST_DEVICES)
    {
        return CUDA_ERROR_INVALID_DEVICE;
    }
    // A driver that is older than the code may still take what comes next: that of an older architecture, PTX at last.
    status = CUDA_ERROR_NO_BINARY_FOR_GPU;
    while ((index = find_kernel(10 * major + minor, dtype, width, tile)) != COUNT)
    {
        if (ready[index][device].load())
        {
            return CUDA_SUCCESS;
        }
        // Loading is no work of a stream: one that this thread captures goes on.
        CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_RELAXED;
        cuda.exchange_capture_mode(&mode);
        status = load_onto(index, device);
        cuda.exchange_capture_mode(&mode);
        ready[index][device].store(status == CUDA_SUCCESS);
        if (!is_of_code(status))
        {
            return status;
        }
        refused[index].store(true);
    }
    return status;
}

bool is_known(int dtype, int width)
{
    return std::any_of(KERNELS, KERNELS + COUNT,
        [=](const Kernel& kernel) { return kernel.dtype == dtype && kernel.width == width; });
}

bool begins_at_vector(const void* pointer)
{
    return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

long long blocks_of(int count, int size)
{
    return (static_cast<long long>(count) + size - 1) / size;
}

}  // namespace
}  // namespace vitslim

extern "C" int vitslim_sparse_attention(const void* query, const void* key, const void* value, const int32_t* kept,
    void* out, int dtype, int b, int h, int n, int e, int tiles, int keys, int tile, int prefix, float scale,
    void* stream)
{
    using namespace vitslim;
    const bool counted = b >= 1 && h >= 1 && n >= 1 && keys >= 1 && keys <= n && tile >= 1 && tile <= LARGEST_TILE
        && prefix >= 0 && prefix <= n && is_known(dtype, e);
    if (!counted || tiles != blocks_of(n - prefix, tile))
    {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (!begins_at_vector(query) || !begins_at_vector(key) || !begins_at_vector(value) || !begins_at_vector(kept)
        || !begins_at_vector(out))
    {
        return CUDA_ERROR_MISALIGNED_ADDRESS;
    }
    const int queries = own_queries(dtype, tile);
    const long long programs = blocks_of(prefix, queries) + tiles * blocks_of(tile, queries);
    const long long image = static_cast<long long>(h) * n * e;
    // Strides and the number of programs are 32 bits wide.
    if (image > INT_MAX || programs > INT_MAX / h / b)
    {
        return CUDA_ERROR_INVALID_VALUE;
    }
    size_t index = 0;
    const CUresult status = find_ready(dtype, e, tile, index);
    if (status != CUDA_SUCCESS)
    {
        return status;
    }
    int image_stride = static_cast<int>(image);
    int head_stride = n * e;
    void* hidden = nullptr;
    // As packed_form leaves the parameters of the kernel, and behind them Triton's own.
    void* arguments[] = {&query, &key, &value, &kept, &image_stride, &head_stride, &image_stride, &head_stride,
        &image_stride, &head_stride, &image_stride, &head_stride, &h, &n, &keys, &tile, &tiles, &prefix, &scale, &out,
        &hidden, &hidden};
    const Kernel& kernel = KERNELS[index];
    const unsigned grid = static_cast<unsigned>(programs * h * b);
    return driver().launch(reinterpret_cast<CUfunction>(loaded[index].load()), grid, 1, 1, kernel.threads, 1, 1,
        kernel.shared_bytes, static_cast<CUstream>(stream), arguments, nullptr);
}

extern "C" int vitslim_sparse_attention_load(int dtype, int e, int tile)
{
    size_t index = 0;
    return vitslim::is_known(dtype, e) ? vitslim::find_ready(dtype, e, tile, index) : CUDA_ERROR_INVALID_VALUE;
}

extern "C" const char* vitslim_sparse_attention_widths(void)
{
    return vitslim::WIDTHS;
}

extern "C" int vitslim_sparse_attention_has(int e)
{
    return vitslim::is_known(1, e);
}

extern "C" const char* vitslim_error_text(int status)
{
    const vitslim::Driver& cuda = vitslim::driver();
    if (cuda.status == CUDA_ERROR_NO_DEVICE && status == cuda.status)
    {
        return "NVIDIA's driver, libcuda.so.1, is not here";
    }
    if (cuda.status == CUDA_ERROR_SYSTEM_DRIVER_MISMATCH && status == cuda.status)
    {
        return "NVIDIA's driver is older than CUDA 12";
    }
    const char* text = nullptr;
    if (cuda.error_string != nullptr)
    {
        cuda.error_string(static_cast<CUresult>(status), &text);
    }
    return text != nullptr ? text : status == CUDA_ERROR_INVALID_VALUE ? "invalid argument" : "unknown error";
}

extern "C" const char* vitslim_kernels_version(void)
{
    return vitslim::VERSION;
}
