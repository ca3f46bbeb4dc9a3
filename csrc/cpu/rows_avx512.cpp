#define SOATFAST_ISA avx512
#define SOATFAST_TABLE kAvx512Kernels
#include "rows.inc"
