"""The measured figures of a claim in words."""

from __future__ import annotations

from collections.abc import Sequence

from soatfast.commands.papers.measured import Measured
from soatfast.commands.papers.verdicts import FAILS, HOLDS, MISSING, OPEN, Cheaper, Part, Verdict

_MARK: dict[Verdict, str] = {HOLDS: "", FAILS: " (no)", OPEN: " (not separable)", MISSING: ""}


def figures(parts: Sequence[Part | Cheaper], found: Measured) -> str:
    """`UL: SCORPIO FE(3) 73.4 ± 1.0, CURE 30.1 ± 2.0; ...`: parts that share their left figure are told together.

    Where the parts differ in their verdicts, those that do not hold are marked; what was not measured is named last.
    """
    verdicts = [part.verdict(found) for part in parts]
    mixed = len(set(verdicts)) > 1
    groups: dict[str, list[str]] = {}
    for part, verdict in zip(parts, verdicts, strict=True):
        if verdict != MISSING:
            head, tail = _pair(part, found)
            groups.setdefault(head, []).append(tail + (_MARK[verdict] if mixed else ""))
    texts = [", ".join([head, *tails]) for head, tails in groups.items()]
    wanting = needs(parts, found)
    return "; ".join(texts + ([f"not measured: {wanting}"] if wanting else []))


def needs(parts: Sequence[Part | Cheaper], found: Measured) -> str:
    """The methods and attacks that were not run, or nothing."""
    pairs = cells(parts)
    methods = [method for method, _ in pairs if method not in found.accuracy]
    attacks = [attack for _, attack in pairs if attack and attack not in found.headers]
    lists = [(name, dict.fromkeys(words)) for name, words in (("method", methods), ("attack", attacks)) if words]
    return ", ".join(f"{name}{'s' if len(words) > 1 else ''} {', '.join(words)}" for name, words in lists)


def passes(parts: Sequence[Part | Cheaper], found: Measured, of: str) -> str:
    """Forward + backward passes a sample of every training step (of="training") or attack (of="attack")."""
    if of == "attack":
        keys = dict.fromkeys(attack for _, attack in cells(parts))
        texts = [f"{found.headers[key]} {found.attacks[key]}" for key in keys if key in found.attacks]
        return ", ".join(texts) or "no model had a right answer to attack"
    keys = dict.fromkeys(method for method, _ in cells(parts))
    return ", ".join(f"{found.label(key)} {found.training[key]}" for key in keys if key in found.training)


def cells(parts: Sequence[Part | Cheaper]) -> list[tuple[str, str]]:
    """(method, attack) of all figures; the attack of a pass count is empty."""
    both = [(p.left, p.right) if isinstance(p, Part) else ((p.left, ""), (p.right, "")) for p in parts]
    return [cell for pair in both for cell in pair]


def _pair(part: Part | Cheaper, found: Measured) -> tuple[str, str]:
    """The left figure and the right one."""
    if isinstance(part, Cheaper):
        a, b = found.training[part.left].backward, found.training[part.right].backward
        return f"backward passes: {found.label(part.left)} {a:.3g}", f"{found.label(part.right)} {b:.3g}"
    (method, attack), (other, against) = part.left, part.right
    a_shown, b_shown = found.shown(method, attack), found.shown(other, against)
    if attack == against:
        return f"{found.headers[attack]}: {found.label(method)} {a_shown}", f"{found.label(other)} {b_shown}"
    head = f"{found.label(method)}: {a_shown} under {found.headers[attack]}"
    return head, f"{b_shown} under {found.headers[against]}"
