#pragma once

/// Of an inline function that kernels of the device call too.
#ifdef __CUDACC__
#define XSR_HOST_DEVICE __host__ __device__
#else
#define XSR_HOST_DEVICE
#endif
