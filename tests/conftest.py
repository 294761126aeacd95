"""What may differ from machine to machine, and may not decide a test."""

from __future__ import annotations

import os

from hypothesis import settings

# MKL otherwise chooses kernels by where operands lie in memory, and equal computations of two processes, or of two models in
# one, are not equal in every bit. Inherited by the processes that tests start; read when torch multiplies its first matrices.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")

# What runs in the process of the tests runs where the ranks that they start do, also where there is an accelerator.
os.environ.setdefault("DS_ACCELERATOR", "cpu")

# The same examples everywhere, without a limit on the time that one takes.
settings.load_profile("ci")
