"""Options of the benchmarks that run under pytest."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--batch",
        type=int,
        action="append",
        default=[],
        metavar="B",
        help="a further batch size of bench_peers, for both networks; may be given several times",
    )
