"""Prints the ratios of a benchmark run as a Markdown table: ``python -m benchmarks.report runs/bench.json``."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def label(record: dict) -> str:
    """The case without its backend: ``lmo p=2.0``."""
    parameters = record["params"] or {}
    rest = [f"{key}={value}" for key, value in parameters.items() if key != "backend"]
    return " ".join([record["extra_info"]["op"], *sorted(rest, reverse=True)])


def table(records: list[dict]) -> str:
    """One row a case: times, ratios, and how near the kernel is to a copy of its bytes."""
    cases: dict[str, dict[str, dict]] = {}
    for record in records:
        if "op" in record["extra_info"] and "microseconds" in record["extra_info"]:
            cases.setdefault(label(record), {})[record["extra_info"]["backend"]] = record["extra_info"]
    lines = [
        "| op | eager us | torch.compile us | soatfast us | eager / soatfast | compile / soatfast | GB/s | of a copy |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, by in sorted(cases.items()):
        if "soatfast" not in by:
            continue
        mine = by["soatfast"]
        # Each backend's speed-up is over the eager runs interleaved with its own.
        eager = mine["microseconds"] * mine["speedup_over_reference"]
        compiled = by.get("torch.compile")
        ratio = mine["speedup_over_reference"] / compiled["speedup_over_reference"] if compiled else None
        lines.append(
            f"| {name} | {eager:.0f} | {compiled['microseconds']:.0f} | {mine['microseconds']:.0f} "
            f"| {mine['speedup_over_reference']:.1f} | {ratio:.1f} | {mine['gigabytes_per_second']:.1f} "
            f"| {mine['fraction_of_copy']:.2f} |"
            if compiled and ratio
            else f"| {name} | {eager:.0f} | - | {mine['microseconds']:.0f} | {mine['speedup_over_reference']:.1f} "
            f"| - | {mine['gigabytes_per_second']:.1f} | {mine['fraction_of_copy']:.2f} |"
        )
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m benchmarks.report RESULTS.json", file=sys.stderr)
        return 2
    data = json.loads(Path(arguments[0]).read_text())
    cpu = data["machine_info"]["cpu"].get("brand_raw", "unknown CPU")
    threads = next((r["extra_info"]["threads"] for r in data["benchmarks"] if "threads" in r["extra_info"]), "?")
    version = next((r["extra_info"]["torch"] for r in data["benchmarks"] if "torch" in r["extra_info"]), "?")
    print(f"{cpu}, {threads} threads, torch {version}, (128, 3072) float32, medians of interleaved runs\n")
    print(table(data["benchmarks"]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
