"""Score tables for people."""

from __future__ import annotations

from collections.abc import Mapping

Scores = Mapping[str, Mapping[str, float]]
"""Language (or ``mean``) -> metric -> score."""


def comparison_table(arms: Mapping[str, Scores], signatures: Mapping[str, str]) -> str:
    """Arms side by side: a row per language and the mean, a column per metric and arm, and the first arm's lead in BLEU."""
    names = list(arms)
    rows = list(next(iter(arms.values())))
    head = "language".ljust(10) + "".join(f"{metric + ' ' + name:>16}" for metric in signatures for name in names)
    lead = len(names) == 2
    lines = [head + (f"{'BLEU difference':>18}" if lead else "")]
    for row in rows:
        cells = "".join(f"{arms[name][row][metric]:>16.2f}" for metric in signatures for name in names)
        difference = arms[names[0]][row]["BLEU"] - arms[names[-1]][row]["BLEU"]
        lines.append(row.ljust(10) + cells + (f"{difference:>+18.2f}" if lead else ""))
    lines += [f"{metric}: {signature}" for metric, signature in signatures.items()]
    return "\n".join(lines)
