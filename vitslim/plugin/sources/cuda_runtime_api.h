// What TensorRT's headers want of the CUDA runtime's, which lean on parts of the CUDA compiler: the names of two handles.
#pragma once

#include <cuda.h>

typedef CUstream cudaStream_t;
typedef CUevent cudaEvent_t;
