"""Second-order solvers on input gradients: batched GMRES, Hessian products, quadratic models, curvature, spectra."""

from soatfast.solvers.curvature import Eigenpair, Eigenpairs, top_eigenpair, top_eigenpairs
from soatfast.solvers.ggn import gauss_newton
from soatfast.solvers.hessian import Scheme, hvp, unit_step
from soatfast.solvers.krylov import ArnoldiResult, GMRESResult, Status, arnoldi, gmres
from soatfast.solvers.quadratic import newton, trust_region
from soatfast.solvers.spaces import Difference
from soatfast.solvers.spectrum import (
    Estimate,
    Spectrum,
    eigenvalue_profile,
    frobenius_norm,
    hessian_trace,
    spectral_density,
)

__all__ = [
    "ArnoldiResult",
    "Difference",
    "Eigenpair",
    "Eigenpairs",
    "Estimate",
    "GMRESResult",
    "Scheme",
    "Spectrum",
    "Status",
    "arnoldi",
    "eigenvalue_profile",
    "frobenius_norm",
    "gauss_newton",
    "gmres",
    "hessian_trace",
    "hvp",
    "newton",
    "spectral_density",
    "top_eigenpair",
    "top_eigenpairs",
    "trust_region",
    "unit_step",
]
