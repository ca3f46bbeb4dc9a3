"""The ratios of a benchmark run: ``python -m benchmarks.report runs/bench.json``.

Prints a Markdown table and writes it beside the results (bench.md), with a picture of the ratios that were measured
against the batch size (bench.png).
"""

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


def plots(records: list[dict]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Plot -> rival -> (place on the axis, time over ours), of the races that belong to a plot."""
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for record in records:
        info = record["extra_info"]
        if "series" not in info:
            continue
        rivals = found.setdefault(info["series"], {})
        for name in list(info["microseconds"])[1:]:
            rivals.setdefault(name, []).append((info["at"], info["ratios"][name]))
    return found


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m benchmarks.report RESULTS.json", file=sys.stderr)
        return 2
    path = Path(arguments[0])
    data = json.loads(path.read_text())
    infos = [record["extra_info"] for record in data["benchmarks"] if "ratios" in record["extra_info"]]
    if not infos:
        print("no races in this file: it was written with --benchmark-disable?", file=sys.stderr)
        return 1
    cpu = data["machine_info"]["cpu"].get("brand_raw", "unknown CPU")
    head = f"{cpu}, {infos[0]['threads']} threads, torch {infos[0]['torch']}, medians of runs in turns"
    text = f"{head}\n\n{markdown(data['benchmarks'])}"
    print(text)
    path.with_suffix(".md").write_text(text + "\n")
    drawn = plots(data["benchmarks"])
    if drawn:
        from benchmarks.plots import ratios_picture

        ratios_picture(path.with_suffix(".png"), drawn)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
