// The calls of CUDA's driver that the launcher makes, answered without a GPU; a launch goes to the test, which runs the
// kernel on the CPU.
#include <cstring>
#include <map>

#include <cuda.h>

namespace
{

using Launch = int (*)(const void* code, unsigned grid, unsigned threads, unsigned shared_bytes, void** arguments);

int capability = 90;
bool is_old = false;  // and takes no machine code
int loads = 0;
std::map<CUkernel, int> granted;  // bytes of shared memory
Launch launch = nullptr;

}  // namespace

extern "C"
{
void test_begin(int architecture, bool takes_ptx_alone, Launch callback)
{
    capability = architecture;
    is_old = takes_ptx_alone;
    launch = callback;
}

int test_loads()
{
    return loads;
}

CUresult cuCtxGetDevice(CUdevice* device)
{
    *device = 0;
    return capability == 0 ? CUDA_ERROR_INVALID_CONTEXT : CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice)
{
    *value = attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR ? capability / 10 : capability % 10;
    return CUDA_SUCCESS;
}

CUresult cuLibraryLoadData(
    CUlibrary* library, const void* code, CUjit_option*, void**, unsigned, CUlibraryOption*, void**, unsigned)
{
    if (is_old && std::memcmp(code, "\177ELF", 4) == 0)
    {
        return CUDA_ERROR_INVALID_IMAGE;
    }
    ++loads;
    *library = reinterpret_cast<CUlibrary>(const_cast<void*>(code));
    return CUDA_SUCCESS;
}

CUresult cuLibraryGetKernel(CUkernel* kernel, CUlibrary library, const char* name)
{
    *kernel = reinterpret_cast<CUkernel>(library);
    return std::strcmp(name, "tile_attention_kernel") == 0 ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

CUresult cuKernelGetFunction(CUfunction* function, CUkernel kernel)
{
    *function = reinterpret_cast<CUfunction>(kernel);
    return CUDA_SUCCESS;
}

CUresult cuKernelSetAttribute(CUfunction_attribute, int value, CUkernel kernel, CUdevice)
{
    granted[kernel] = value;
    return CUDA_SUCCESS;
}

CUresult cuLaunchKernel(CUfunction function, unsigned grid, unsigned y, unsigned z, unsigned threads, unsigned, unsigned,
    unsigned shared_bytes, CUstream, void** arguments, void**)
{
    // As a driver does that was not asked for so much.
    const int most = granted[reinterpret_cast<CUkernel>(function)];
    if (y != 1 || z != 1 || shared_bytes > static_cast<unsigned>(most))
    {
        return CUDA_ERROR_INVALID_VALUE;
    }
    return static_cast<CUresult>(launch(reinterpret_cast<const void*>(function), grid, threads, shared_bytes, arguments));
}

CUresult cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode*)
{
    return CUDA_SUCCESS;
}

CUresult cuGetErrorString(CUresult, const char** text)
{
    *text = "in the driver's words";
    return CUDA_SUCCESS;
}
}
