"""Docstrings as pages: plain formulas become mathematics, everything else is escaped for reStructuredText.

An indented paragraph of a docstring is a formula, written as it reads in `help()`:

    v_{k+1} = v_k + 2/(k+2) (s_k - v_k),   s_k = argmax of <g, s> over ||s||_p <= eps

Two or more blanks after a comma or a semicolon separate formulas. What is no formula follows a "::". The mathematics
is MathML, which browsers draw by themselves: no script, no font, no network.
"""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert

_GREEK = ("alpha", "beta", "gamma", "delta", "eta", "lambda", "mu", "pi", "rho", "sigma", "tau")
_LIMITS = {"sum": r"\sum", "max": r"\max", "min": r"\min", "argmax": r"\operatorname{argmax}", "log": r"\log"}
_WORDS = {"eps": r"\varepsilon", "inf": r"\infty", **_LIMITS, **{w: f"\\{w}" for w in _GREEK}}
_SIGNS = {
    "<-": r"\leftarrow ", "->": r"\to ", "<=": r"\le ", ">=": r"\ge ", "!=": r"\ne ", "||": r"\|", "..": r"\ldots ",
    "*": r"\cdot ", "~": r"\sim ", "#": r"\#", "%": r"\%", "<<": r"\langle ", ">>": r"\rangle ",
}  # fmt: skip
_TOKEN = re.compile(
    r"``(?P<code>[^`]+)``|(?P<word>[A-Za-z]+(?:_[a-z]{2,})*)(?P<digit>\d*)|(?P<number>\d+(?:\.\d+)?)"
    r"|(?P<mark>[_^])(?P<open>\{|\()?|(?P<sign><<|>>|<-|->|<=|>=|!=|\|\||\.\.|[*~#%{}])|(?P<other>\s+|.)"
)
_PLAIN = re.compile(r"(``.+?``|:[a-z:]+:`[^`]+`|`[^`]+`)", re.DOTALL)


def latex(text: str) -> str:
    r"""One plain formula in LaTeX.

    >>> print(latex("v <- v + gamma (s_k - v)"))
    v \leftarrow  v + \gamma (s_{k} - v)
    >>> print(latex("x' = argmax of <g, s> over ||s||_p <= eps"))
    x' = \operatorname{argmax} \;\text{of}\; \langle g, s\rangle  \;\text{over}\; \|s\|_{p} \le  \varepsilon
    >>> print(latex("rho_bar + 1/2 ||g||_q^2"), latex("|g_i|^(q-1)"), latex("2 sqrt((D))"), latex("{i: z_{j}}"))
    \bar{\rho} + 1/2 \|g\|_{q}^{2} |g_{i}|^{q-1} 2 \sqrt{(D)} \{i: z_{j}\}
    """
    text = re.sub(r"<([^<>=]*,[^<>]*)>", r"<<\1>>", text)
    out: list[str] = []
    waiting: list[tuple[str, str]] = []  # what closes each open bracket, and what is then written
    at = 0
    while match := _TOKEN.match(text, at):
        at = match.end()
        if match["code"]:
            out.append(rf"\;\text{{{match['code']}}}\;")
        elif match["word"] == "sqrt" and text[at : at + 1] == "(":
            at += 1
            out.append(r"\sqrt{")
            waiting.append((")", "}"))
        elif match["word"]:
            out.append(_word(match["word"], match["digit"], text[at : at + 1]))
        elif match["mark"]:
            out.append(match["mark"] + "{")
            if match["open"]:
                waiting.append(("}" if match["open"] == "{" else ")", "}"))
            else:  # one word, number or sign is raised or lowered
                one = re.match(r"[A-Za-z]+|\d+|.", text[at:])
                assert one is not None, f"nothing follows {match['mark']} in the formula {text!r}"
                at += one.end()
                out.append(latex(one[0]) + "}")
        elif waiting and match[0] == waiting[-1][0]:
            out.append(waiting.pop()[1])
        elif match[0] in "({":
            waiting.append((")", ")") if match[0] == "(" else ("}", r"\}"))
            out.append("(" if match[0] == "(" else r"\{")
        else:
            out.append(_SIGNS.get(match[0], match[0]))
    return "".join(out).strip()


def _word(word: str, digit: str, following: str) -> str:
    if "_" in word:
        stem, _, tail = word.partition("_")
        if tail == "bar":
            return rf"\bar{{{_word(stem, digit, '')}}}"
        if tail == "inf":
            return rf"{_word(stem, digit, '_')}_{{\infty}}"
    if word in _WORDS:
        shown = _WORDS[word]
    elif len(word) == 1:
        shown = word
    elif following in ("(", "_") and "_" not in word:
        shown = rf"\operatorname{{{word}}}"
    elif following in ("(", "_"):
        shown = rf"\text{{{word}}}"
    else:
        shown = rf"\;\text{{{word}}}\;"
    return f"{shown}_{{{digit}}}" if digit else shown


def display(block: list[str]) -> list[str]:
    """The lines of an indented paragraph as one displayed formula."""
    parts = [part.strip() for line in block for part in re.split(r"(?<=[;,])\s{2,}|\s{4,}", line.strip())]
    rows = [latex(part.rstrip(";,")) for part in parts if part.rstrip(";,")]
    body = rows[0] if len(rows) == 1 else r"\begin{array}{l}" + r" \\ ".join(rows) + r"\end{array}"
    return ["", ".. math::", "", f"   {body}", ""]


def escaped(text: str) -> str:
    """Running text with what reStructuredText would read as markup taken literally; `name` is code."""

    def literal(part: str) -> str:
        part = part.replace("\\", r"\\").replace("*", r"\*").replace("|", r"\|")
        return re.sub(r"(?<=\w)_(?!\w)", r"\\_", part)

    parts = _PLAIN.split(text)
    for i, part in enumerate(parts):
        if i % 2 == 0:
            parts[i] = literal(part)
        elif part.startswith("`") and not part.startswith("``"):
            parts[i] = f"`{part}`"
    text = "".join(parts)
    return re.sub(r"(?m)^(Passes|Defaults)(?=[,: ])([^:]*):", r"**\1**\2:", text)


def paragraphs(lines: list[str]) -> list[list[str]]:
    """Runs of lines between empty ones."""
    runs: list[list[str]] = [[]]
    for line in lines:
        if line.strip():
            runs[-1].append(line)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def process(app: Any, what: str, name: str, item: object, options: Any, lines: list[str]) -> None:
    """autodoc's docstring, before napoleon reads its sections."""
    out: list[str] = []
    literal = False
    for block in paragraphs(lines):
        indent = len(block[0]) - len(block[0].lstrip())
        if block[0].lstrip().startswith(">>>") or (literal and indent):
            out += block
        elif indent >= 4 and not re.match(r"\s+([\w, ]+: |- )", block[0]):
            out += display(block)
        else:
            text = "\n".join(block)
            literal = text.endswith("::")
            out += escaped(text).split("\n")
        out.append("")
    lines[:] = out


def _inline(self: Any, node: nodes.Element) -> None:
    self.body.append(convert(node.astext()))
    raise nodes.SkipNode


def _block(self: Any, node: nodes.Element) -> None:
    shown = convert(node.astext()).replace("<math ", '<math displaystyle="true" ', 1)  # "block" would be centred
    self.body.append(f'<div class="math">{shown}</div>\n')
    raise nodes.SkipNode


def setup(app: Any) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", inline_renderers=(_inline, None), block_renderers=(_block, None))
    app.config.html_math_renderer = "mathml"
    app.connect("autodoc-process-docstring", process, priority=400)
    return {"parallel_read_safe": True}
