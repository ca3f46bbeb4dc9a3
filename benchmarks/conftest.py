"""Options of the benchmarks that run under pytest."""

from __future__ import annotations

import pytest

from soatfast import keep_memory

from . import harness


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--batch",
        type=int,
        action="append",
        default=[],
        metavar="B",
        help="a further batch size of bench_peers, for both networks; may be given several times",
    )
    parser.addoption(
        "--rows",
        type=int,
        default=harness.ROWS,
        metavar="B",
        help="samples of 3072 entries that the ops and the solver are timed on; 5462 make arrays of 64 MiB",
    )
    parser.addoption("--keep-memory", action="store_true", help="call soatfast.keep_memory() first")


def pytest_configure(config: pytest.Config) -> None:
    harness.ROWS = config.getoption("--rows")
    if config.getoption("--keep-memory") and not keep_memory():
        raise pytest.UsageError(
            "--keep-memory does nothing here: it needs glibc, and an environment without settings of malloc"
        )
