#define SOATFAST_ISA baseline
#define SOATFAST_TABLE kBaselineKernels
#include "rows.inc"
