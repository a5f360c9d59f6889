// Lets a C++ compiler take the kernels as they are: what nvcc would know of, said in words for a CPU.
//
// Included before everything else. A CUDA thread is a fibre; all fibres take turns in one real thread and hand over
// only where the warp or the block waits for one another. Thus a missing barrier is not a race that shows now and then
// but a wrong number every time, in at least one of the two orders in which the fibres can take turns. One that stands
// next to a shuffle is not missed: here a shuffle makes the lanes wait, on a GPU it does not order their memory.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include <cuda_runtime_api.h>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#undef __shared__
#undef __global__
#undef __device__
#undef __host__
#undef __forceinline__
#undef __launch_bounds__
// One block runs at a time, so that one copy serves.
#define __shared__ static
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct Place
{
    unsigned x;
};
extern Place threadIdx;
extern Place blockIdx;

enum class Wait
{
    NONE,
    WARP,
    BLOCK,
    ENDED
};

void wait_for(Wait others);
void* mailbox(int lane);  // of the running warp, 8 bytes for each lane

inline void __syncthreads()
{
    wait_for(Wait::BLOCK);
}

inline void __syncwarp()
{
    wait_for(Wait::WARP);
}

template <class T> T __shfl_sync(unsigned, T number, int lane)
{
    *static_cast<T*>(mailbox(threadIdx.x % 32)) = number;
    wait_for(Wait::WARP);
    const T got = *static_cast<T*>(mailbox(lane));
    wait_for(Wait::WARP);
    return got;
}

template <class T> T __shfl_xor_sync(unsigned mask, T number, int bits)
{
    return __shfl_sync(mask, number, static_cast<int>(threadIdx.x % 32) ^ bits);
}

inline float __int_as_float(int bits)
{
    float number;
    std::memcpy(&number, &bits, sizeof(number));
    return number;
}

inline int min(int first, int second)
{
    return first < second ? first : second;
}
