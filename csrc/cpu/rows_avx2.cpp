#define SOATFAST_ISA avx2
#define SOATFAST_TABLE kAvx2Kernels
#include "rows.inc"
