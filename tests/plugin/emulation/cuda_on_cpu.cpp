// Runs the blocks of a launch one after the other, the threads of a block as fibres. See the header.
#include "cuda_on_cpu.h"

#include <cstdlib>
#include <cstring>
#include <vector>

#include <ucontext.h>

#include "sparse_attention.cuh"

Place threadIdx;
Place blockIdx;

namespace
{

using Kernel = void (*)(vitslim::Problem);
constexpr size_t STACK_BYTES = 64 * 1024;

struct Fibre
{
    ucontext_t context;
    std::vector<char> stack;
    Wait waits = Wait::NONE;
};

std::vector<Fibre> fibres;
ucontext_t scheduler;
uint64_t mailboxes[32][32];
unsigned running;
Kernel kernel;
const vitslim::Problem* problem;

void run_fibre()
{
    kernel(*problem);
    fibres[running].waits = Wait::ENDED;
    swapcontext(&fibres[running].context, &scheduler);
}

void begin(Fibre& fibre)
{
    fibre.stack.resize(STACK_BYTES);
    fibre.waits = Wait::NONE;
    getcontext(&fibre.context);
    fibre.context.uc_stack.ss_sp = fibre.stack.data();
    fibre.context.uc_stack.ss_size = fibre.stack.size();
    fibre.context.uc_link = nullptr;
    makecontext(&fibre.context, run_fibre, 0);
}

// Those of [first, last) that all wait for one another, or have ended, go on.
bool release(size_t first, size_t last, Wait where)
{
    bool any = false;
    for (size_t i = first; i < last; ++i)
    {
        if (fibres[i].waits != where && fibres[i].waits != Wait::ENDED)
        {
            return false;
        }
        any = any || fibres[i].waits == where;
    }
    for (size_t i = first; i < last; ++i)
    {
        if (fibres[i].waits == where)
        {
            fibres[i].waits = Wait::NONE;
        }
    }
    return any;
}

bool run_block(bool backwards)
{
    const size_t threads = fibres.size();
    for (Fibre& fibre : fibres)
    {
        begin(fibre);
    }
    for (;;)
    {
        bool ran = false;
        for (size_t i = 0; i < threads; ++i)
        {
            running = static_cast<unsigned>(backwards ? threads - 1 - i : i);
            if (fibres[running].waits == Wait::NONE)
            {
                threadIdx.x = running;
                swapcontext(&scheduler, &fibres[running].context);
                ran = true;
            }
        }
        for (size_t warp = 0; warp < threads; warp += 32)
        {
            ran = release(warp, warp + 32, Wait::WARP) || ran;
        }
        ran = release(0, threads, Wait::BLOCK) || ran;
        if (!ran)
        {
            break;
        }
    }
    for (const Fibre& fibre : fibres)
    {
        if (fibre.waits != Wait::ENDED)
        {
            return false;
        }
    }
    return true;
}

}  // namespace

void wait_for(Wait others)
{
    const unsigned self = running;
    fibres[self].waits = others;
    swapcontext(&fibres[self].context, &scheduler);
}

void* mailbox(int lane)
{
    return &mailboxes[running / 32][lane];
}

// The order of turns stands in the environment: it is the caller's test that changes it.
extern "C" cudaError_t cudaLaunchKernel(
    const void* function, dim3 grid, dim3 block, void** arguments, size_t, cudaStream_t)
{
    const char* order = std::getenv("EMULATION_ORDER");
    const bool backwards = order != nullptr && std::strcmp(order, "backwards") == 0;
    kernel = reinterpret_cast<Kernel>(const_cast<void*>(function));
    problem = static_cast<const vitslim::Problem*>(arguments[0]);
    fibres.resize(block.x);
    for (unsigned number = 0; number < grid.x; ++number)
    {
        blockIdx.x = number;
        if (!run_block(backwards))
        {
            return cudaErrorLaunchTimeout;  // threads wait for others that never come
        }
    }
    return cudaSuccess;
}

extern "C" const char* cudaGetErrorString(cudaError_t error)
{
    return error == cudaSuccess ? "no error" : "some error";
}
