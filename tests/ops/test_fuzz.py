"""Every public op survives every argument: bad shapes, dtypes, numbers, in a process of its own, by printed seeds."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
SECONDS = 10.0  # of calls; SOATFAST_FUZZ_SECONDS makes it longer
SAID = (TypeError, ValueError, RuntimeError, IndexError, OverflowError, NotImplementedError)


def bases(rows=3, m=4, size=8):
    """(positional, keyword) arguments of each op that are right."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    g, plus, v, x, eps = (
        normal(rows, 2, 4),
        normal(rows, 2, 4),
        normal(rows, 2, 4),
        normal(rows, 2, 4),
        torch.ones(rows),
    )
    memory, index, whole = torch.zeros(rows + 1, 2, 4), torch.arange(rows), torch.zeros(rows, dtype=torch.int32)
    basis, hessenberg, norms = normal(rows, m + 1, size), normal(m, m + 1, rows), torch.ones(m, rows)
    triangle, rotations, rhs = normal(m, m, rows), normal(m, 2, rows), normal(m + 1, rows)
    state = [triangle, rotations, rhs, whole, whole.clone()]
    return {
        "lmo": ([g, 2.0, eps], {}),
        "lp_norm": ([g, 2.0], {}),
        "frank_wolfe_init": ([g, x, 2.0, eps], {"h": 1.0}),
        "frank_wolfe_step": ([g, plus, v, x, 2.0, eps], {"gamma": 0.5}),
        "power_step": ([g, plus, v, x, 1.0], {}),
        "cross_entropy_derivative": ([g.flatten(1), torch.arange(rows), 1.0], {}),
        "project": ([x + g, x, 1.0, eps], {"exact": False}),
        "pgd_step": ([x + g, g, x, 2.0, eps, 0.1], {"exact": True}),
        "replay_start": ([memory, index, x, eps], {}),
        "replay_step": ([memory, index, g, x, 2.0, eps, 0.3], {}),
        "arnoldi_start": ([basis, normal(rows, size)], {}),
        "arnoldi_step": ([basis, hessenberg, norms, normal(rows, size), whole, 0], {"step": 1.0}),
        "givens_step": ([*state, hessenberg, norms, torch.ones(rows)], {"column": 0, "count": 1, "rcond": 1e-3}),
        "triangular_solve": ([triangle, rhs, whole], {}),
        "krylov_combine": ([basis, normal(m, rows)], {}),
    }


def spoiled(value, rng):
    """Another value in place of `value`: mostly of its kind, now and then of none."""
    if isinstance(value, torch.Tensor) and rng.random() < 0.9:
        t = value.clone()
        choices = (
            lambda: t[:0],
            lambda: t[:1],
            lambda: t.unsqueeze(-1),
            lambda: t.flatten(),
            lambda: t.to(
                rng.choice([torch.float64, torch.float16, torch.int8, torch.int64, torch.bool, torch.complex64])
            ),
            lambda: t.transpose(0, -1),
            lambda: t.expand(2, *t.shape)[0] if t.dim() else t,
            lambda: t.fill_(rng.choice([0, -1, 1, 100])),
            lambda: t.fill_(rng.choice([10**8, -(10**8), 2**31 - 1, -(2**31)])),
            lambda: t.mul_(float("nan")) if t.is_floating_point() else t,
            lambda: t.fill_(float("inf")) if t.is_floating_point() else t,
            lambda: torch.empty(0),
            lambda: t.to("meta"),
            lambda: t.to_sparse() if t.dim() else t,
            lambda: t.requires_grad_() if t.is_floating_point() else t,
        )
        try:
            return rng.choice(choices)()
        except SAID:  # torch cannot make it: an overflow of the dtype, a sparse tensor spoiled twice
            return value
    numbers = [0, -1, 1, 3, 7, 2**31, -(2**63), 2**70, 0.5, -1e300, 1e-300, float("nan"), float("inf"), True]
    return rng.choice([*numbers, None, "2", [], (1, 2), {}, object(), 1j, torch.tensor(2.0)])


def fuzz(seed, seconds):
    """Calls until the time is up; the seed of each is printed before it, and is enough to repeat it."""
    from soatfast import ops

    end, calls, said = time.monotonic() + seconds, 0, 0
    while time.monotonic() < end:
        rng = random.Random(seed + calls)
        name, (positional, keyword) = rng.choice(sorted(bases().items()))
        print(f"seed {seed + calls} {name}", flush=True)
        for _ in range(rng.choice((1, 1, 2))):
            place = rng.randrange(len(positional) + len(keyword))
            if place < len(positional):
                positional[place] = spoiled(positional[place], rng)
            else:
                key = sorted(keyword)[place - len(positional)]
                keyword[key] = spoiled(keyword[key], rng)
        calls += 1
        try:
            with ops.backend(rng.choice(("auto", "auto", "auto", "reference"))):
                getattr(ops, name)(*positional, **keyword)
        except SAID:
            said += 1
    print(f"{calls} calls, {said} refused", flush=True)


def test_every_op_survives_every_argument():
    seed = int(os.environ.get("SOATFAST_FUZZ_SEED", 0))  # the same each time; another one is asked for
    seconds = float(os.environ.get("SOATFAST_FUZZ_SECONDS", SECONDS))
    program = f"from tests.ops.test_fuzz import fuzz; fuzz({seed}, {seconds})"
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", program], capture_output=True, text=True, cwd=ROOT
    )
    lines = done.stdout.splitlines() or ["nothing was called"]
    print(lines[0], lines[-1])
    assert done.returncode == 0, f"{lines[-1]}: {done.stderr[-1500:]}"
    assert int(lines[-1].split()[0]) > 20


def test_the_list_is_complete():
    from soatfast import ops

    assert set(bases()) == set(ops.__all__) - {"Init", "backend", "pgd_stepper"}
