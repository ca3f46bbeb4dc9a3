"""Second order by the input: the largest curvature of each sample's loss, and a Newton direction by batched GMRES.

Run it with ``python examples/curvature.py``. Every sample has its own Hessian; none of them is ever formed.
"""

import torch
from torch import Tensor, nn

import soatfast as sf

torch.manual_seed(0)
# A smooth network in double precision: Hessian products by double backward are exact there.
model = nn.Sequential(nn.Flatten(), nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 5)).double()
x = torch.rand(8, 1, 4, 4, dtype=torch.float64)
y = torch.randint(5, (8,))

with sf.InputGradient(model) as oracle, sf.count_passes(model) as counted:
    pair = sf.top_eigenpair(oracle, x, y, max_dim=12, scheme="exact")
    print("largest eigenvalues:", ", ".join(f"{value:.4f}" for value in pair.value.tolist()))
    print(f"largest residual {pair.residual.max():.1e}, {counted.forward} forward for all of them")

    gradient = oracle.gradient(x, y)
    damping = 1e-2

    def damped(v: Tensor) -> Tensor:
        """(H + damping I) v for each sample."""
        return sf.hvp(oracle, x, y, v, scheme="exact") + damping * v

    solved = sf.gmres(damped, gradient, max_dim=16, rtol=1e-8)
    error = (damped(solved.x) - gradient).flatten(1).norm(dim=1) / gradient.flatten(1).norm(dim=1)
    print(f"GMRES converged: {bool(solved.converged.all())}, iterations {solved.iterations.tolist()}")
    print(f"largest true residual: {error.max():.1e}")

# An independent check of the first sample: its whole Hessian by autograd.
hessian = torch.autograd.functional.hessian(
    lambda z: nn.functional.cross_entropy(model(z.view(1, 1, 4, 4)), y[:1]), x[0].flatten()
)
top = torch.linalg.eigvalsh(hessian)[-1]
print(f"dense Hessian agrees: {bool((top - pair.value[0]).abs() < 1e-6)}")
