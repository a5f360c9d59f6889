// The C interface of the kernels: plain pointers and numbers, so that ctypes, torch and TensorRT call the same function.
#pragma once

#include <stdint.h>

#if defined(__cplusplus)
extern "C" {
#endif

// Attention of each patch query over the kept keys of its tile, of each prefix query over all keys.
//
//   query, key, value, out   (b, h, n, e), dense, at multiples of 16 bytes, on the device of the stream
//   kept                     (b, h, tiles, keys), token indices in 0..n-1 (not checked), nothing twice within a tile
//   dtype                    0 fp32, 1 fp16, 2 bf16; scores, softmax and sums are fp32
//   e                        a head width that is inside, see vitslim_sparse_attention_widths
//   tiles                    ceil((n - prefix) / tile);  0 <= prefix <= n;  1 <= keys <= n
//   stream                   a CUstream, which is a cudaStream_t
//
// Returns a CUresult: 0, or CUDA_ERROR_INVALID_VALUE (1) for sizes it does not take, CUDA_ERROR_NO_BINARY_FOR_GPU (209)
// where no kernel inside runs on the current device, or what the driver said. Nothing is waited for, nothing is
// allocated. The first call on a device loads the kernel; vitslim_sparse_attention_load does that alone.
__attribute__((visibility("default"))) int vitslim_sparse_attention(const void* query, const void* key,
    const void* value, const int32_t* kept, void* out, int dtype, int b, int h, int n, int e, int tiles, int keys,
    int tile, int prefix, float scale, void* stream);

// Loads the kernel that the call with these numbers would start on the current device.
__attribute__((visibility("default"))) int vitslim_sparse_attention_load(int dtype, int e, int tile);

// Head widths inside, in rising order, for people: "32, 64".
__attribute__((visibility("default"))) const char* vitslim_sparse_attention_widths(void);

// Whether a head width is inside.
__attribute__((visibility("default"))) int vitslim_sparse_attention_has(int e);

// What an error number means, in CUDA's words.
__attribute__((visibility("default"))) const char* vitslim_error_text(int status);

// A digest of the kernels inside.
__attribute__((visibility("default"))) const char* vitslim_kernels_version(void);

#if defined(__cplusplus)
}
#endif
