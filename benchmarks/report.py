"""Prints the ratios of a benchmark run as a Markdown table: ``python -m benchmarks.report runs/bench.json``."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def rows(records: list[dict]) -> list[list[str]]:
    """Title, our microseconds, each rival's time over ours, GB/s and share of a copy; one row a race."""
    table = []
    for record in records:
        info = record["extra_info"]
        if "ratios" not in info:
            continue
        names = list(info["microseconds"])
        rivals = ", ".join(f"{name} {info['ratios'][name]:.2f}" for name in names[1:])
        bandwidth = f"{info['gigabytes_per_second']:.1f}" if "gigabytes_per_second" in info else ""
        share = f"{info['share_of_copy']:.2f}" if "share_of_copy" in info else ""
        table.append([info["title"], f"{info['microseconds'][names[0]]:.0f}", rivals, bandwidth, share])
    return table


def markdown(records: list[dict]) -> str:
    head = ["race", "soatfast, us", "others' time over ours", "GB/s", "of a copy"]
    lines = [head, ["---"] * len(head), *rows(records)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m benchmarks.report RESULTS.json", file=sys.stderr)
        return 2
    data = json.loads(Path(arguments[0]).read_text())
    infos = [record["extra_info"] for record in data["benchmarks"] if "ratios" in record["extra_info"]]
    if not infos:
        print("no races in this file: it was written with --benchmark-disable?", file=sys.stderr)
        return 1
    cpu = data["machine_info"]["cpu"].get("brand_raw", "unknown CPU")
    print(f"{cpu}, {infos[0]['threads']} threads, torch {infos[0]['torch']}, medians of runs in turns\n")
    print(markdown(data["benchmarks"]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
