// The C interface of the kernels: plain pointers and numbers, so that ctypes, torch and TensorRT call the same function.
#pragma once

#include <stdint.h>

#define VITSLIM_KERNELS_VERSION "1.0"

#if defined(__cplusplus)
extern "C" {
#endif

// How the keys of a tile come to its queries. The numbers are TensorRT's tactics too, whose 0 means "the default".
enum VitslimTactic
{
    VITSLIM_TACTIC_DEFAULT = 0,
    VITSLIM_TACTIC_DIRECT = 1,  // each query reads its keys from global memory
    VITSLIM_TACTIC_STAGED = 2,  // a tile's keys are gathered into shared memory once for many queries
};

// Attention of each patch query over the kept keys of its tile, of each prefix query over all keys.
//
//   query, key, value, out   (b, h, n, e), contiguous, on the device of the stream
//   kept                     (b, h, tiles, keys), token indices in 0..n-1 (not checked), nothing twice within a tile
//   dtype                    0 fp32, 1 fp16, 2 bf16; scores, softmax and sums are fp32 in every case
//   e                        1..128;  tiles = ceil((n - prefix) / tile);  0 <= prefix <= n;  keys >= 1
//   stream                   a cudaStream_t
//
// Returns a cudaError_t: 0, or cudaErrorInvalidValue for sizes it does not take, or what the launch said. Nothing is
// waited for, nothing is allocated.
__attribute__((visibility("default"))) int vitslim_sparse_attention(const void* query, const void* key,
    const void* value, const int32_t* kept, void* out, int dtype, int b, int h, int n, int e, int tiles, int keys,
    int tile, int prefix, float scale, void* stream);

// The same with a tactic that the caller has measured.
__attribute__((visibility("default"))) int vitslim_sparse_attention_by(int tactic, const void* query, const void* key,
    const void* value, const int32_t* kept, void* out, int dtype, int b, int h, int n, int e, int tiles, int keys,
    int tile, int prefix, float scale, void* stream);

// What an error number means, in CUDA's words.
__attribute__((visibility("default"))) const char* vitslim_error_text(int status);

__attribute__((visibility("default"))) const char* vitslim_kernels_version(void);

#if defined(__cplusplus)
}
#endif
