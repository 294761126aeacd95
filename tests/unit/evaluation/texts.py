"""Made-up references and translations with errors in them."""

from __future__ import annotations

import numpy as np

from gdps_ds.evaluation.decoding import Translation
from gdps_ds.evaluation.systems import System

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "dogs", "ran", "past", "an", "old", "house", "near", "our", "river"]


def references(count: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, size=rng.integers(5, 12))) for _ in range(count)]


def corrupted(texts: list[str], errors: float, seed: int) -> list[str]:
    """Each word is replaced with probability ``errors``."""
    rng = np.random.default_rng(seed)
    return [" ".join("zzz" if rng.random() < errors else word for word in text.split()) for text in texts]


def system(name: str, errors: dict[str, float], count: int = 60, seed: int = 1) -> System:
    """Translations of ``count`` utterances a language, in which this share of the words is wrong."""
    rows = []
    for number, (language, share) in enumerate(errors.items()):
        texts = references(count, seed=number)
        for index, (text, wrong) in enumerate(zip(texts, corrupted(texts, share, seed), strict=True)):
            rows.append(Translation(f"{language}-{index}", language, "eng", wrong, text))
    return System(name, tuple(rows))
