// The launcher: checks the sizes, picks the kernel for type, head width and tactic, starts it.
#include "sparse_attention.h"

#include <climits>

#include <cuda_runtime_api.h>

#include "sparse_attention.cuh"

namespace vitslim
{
namespace
{

constexpr int LARGEST_TILE = 1 << 30;  // so that rounding it up stays an int

template <class T, int WIDTH, bool STAGED>
__global__ void __launch_bounds__(Geometry<T, WIDTH, STAGED>::THREADS) sparse_attention(const Problem problem)
{
    attend<T, WIDTH, STAGED>(problem);
}

template <class T, int WIDTH, bool STAGED> cudaError_t start(Problem problem, int heads, cudaStream_t stream)
{
    using G = Geometry<T, WIDTH, STAGED>;
    const long long blocks = static_cast<long long>(heads)
        * groups_of(problem.prefix, problem.tiles, problem.tile, G::QUERIES_PER_BLOCK);
    if (blocks > INT_MAX)
    {
        return cudaErrorInvalidValue;
    }
    void* arguments[] = {&problem};
    return cudaLaunchKernel(reinterpret_cast<const void*>(&sparse_attention<T, WIDTH, STAGED>),
        dim3(static_cast<unsigned>(blocks)), dim3(G::THREADS), arguments, 0, stream);
}

template <class T, bool STAGED> cudaError_t start_for_width(const Problem& problem, int heads, cudaStream_t stream)
{
    if (problem.width <= 32)
    {
        return start<T, 32, STAGED>(problem, heads, stream);
    }
    if (problem.width <= 64)
    {
        return start<T, 64, STAGED>(problem, heads, stream);
    }
    return start<T, 128, STAGED>(problem, heads, stream);
}

bool begins_at_vector(const void* pointer)
{
    return reinterpret_cast<uintptr_t>(pointer) % VECTOR_BYTES == 0;
}

template <class T> cudaError_t start_for_type(Problem problem, int heads, int tactic, cudaStream_t stream)
{
    problem.aligned = problem.width * sizeof(T) % VECTOR_BYTES == 0 && begins_at_vector(problem.query)
        && begins_at_vector(problem.key) && begins_at_vector(problem.value) && begins_at_vector(problem.mixed);
    const bool staged
        = tactic == VITSLIM_TACTIC_DEFAULT ? problem.tile >= STAGED_FROM : tactic == VITSLIM_TACTIC_STAGED;
    return staged ? start_for_width<T, true>(problem, heads, stream)
                  : start_for_width<T, false>(problem, heads, stream);
}

bool fits(const Problem& problem, int images, int heads)
{
    const bool counted = images >= 1 && heads >= 1 && problem.tokens >= 1 && problem.keys >= 1
        && problem.keys <= problem.tokens && problem.tile >= 1 && problem.tile <= LARGEST_TILE && problem.prefix >= 0
        && problem.prefix <= problem.tokens && problem.width >= 1 && problem.width <= LARGEST_WIDTH;
    if (!counted || static_cast<long long>(images) * heads > INT_MAX)
    {
        return false;
    }
    const long long patches = problem.tokens - problem.prefix;
    return problem.tiles == (patches + problem.tile - 1) / problem.tile;
}

}  // namespace
}  // namespace vitslim

extern "C" int vitslim_sparse_attention_by(int tactic, const void* query, const void* key, const void* value,
    const int32_t* kept, void* out, int dtype, int b, int h, int n, int e, int tiles, int keys, int tile, int prefix,
    float scale, void* stream)
{
    using namespace vitslim;
    const Problem problem = {query, key, value, kept, out, n, e, tiles, keys, tile, prefix, scale, false};
    if (!fits(problem, b, h) || tactic < VITSLIM_TACTIC_DEFAULT || tactic > VITSLIM_TACTIC_STAGED)
    {
        return cudaErrorInvalidValue;
    }
    const cudaStream_t queue = static_cast<cudaStream_t>(stream);
    switch (dtype)
    {
    case 0: return start_for_type<float>(problem, b * h, tactic, queue);
    case 1: return start_for_type<Half>(problem, b * h, tactic, queue);
    case 2: return start_for_type<Brain>(problem, b * h, tactic, queue);
    default: return cudaErrorInvalidValue;
    }
}

extern "C" int vitslim_sparse_attention(const void* query, const void* key, const void* value, const int32_t* kept,
    void* out, int dtype, int b, int h, int n, int e, int tiles, int keys, int tile, int prefix, float scale,
    void* stream)
{
    return vitslim_sparse_attention_by(VITSLIM_TACTIC_DEFAULT, query, key, value, kept, out, dtype, b, h, n, e, tiles,
        keys, tile, prefix, scale, stream);
}

extern "C" const char* vitslim_error_text(int status)
{
    return cudaGetErrorString(static_cast<cudaError_t>(status));
}

extern "C" const char* vitslim_kernels_version(void)
{
    return VITSLIM_KERNELS_VERSION;
}
