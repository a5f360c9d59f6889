// One kernel under a C name, for those who bring no tool chain: NVRTC compiles it for one element type, one width, one
// set of attributes (the macros), and TensorRT's ahead-of-time plugins pass inputs, whole numbers, outputs in this order.
#include "sparse_attention.cuh"

constexpr bool STAGED = VITSLIM_TILE >= vitslim::STAGED_FROM;
using Kernel = vitslim::Geometry<VITSLIM_TYPE, VITSLIM_PADDED_WIDTH, STAGED>;

// Read from the PTX by whoever starts the kernel: patch queries of one tile that a block serves.
extern "C" __device__ int vitslim_queries_per_block = Kernel::QUERIES_PER_BLOCK;

extern "C" __global__ void __launch_bounds__(Kernel::THREADS) vitslim_sparse_attention_kernel(const void* query,
    const void* key, const void* value, const int* kept, int tokens, int tiles, int keys, void* mixed)
{
    const size_t bits = reinterpret_cast<size_t>(query) | reinterpret_cast<size_t>(key)
        | reinterpret_cast<size_t>(value) | reinterpret_cast<size_t>(mixed)
        | VITSLIM_WIDTH * sizeof(VITSLIM_TYPE);
    const vitslim::Problem problem = {query, key, value, kept, mixed, tokens, VITSLIM_WIDTH, tiles, keys, VITSLIM_TILE,
        VITSLIM_PREFIX, VITSLIM_SCALE, bits % vitslim::VECTOR_BYTES == 0};
    vitslim::attend<VITSLIM_TYPE, VITSLIM_PADDED_WIDTH, STAGED>(problem);
}
