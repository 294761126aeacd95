"""What mining costs, on blocks of SeamlessM4T-Medium's size (d = 1024, h = 4096), one thread; and how exact it is.

Time and memory per layer do not depend on how many layers there are, so two conformer layers stand for the twelve; the
optimiser's step and moments are left out, which makes the ratios larger, not smaller.
"""

from __future__ import annotations

import tempfile
from functools import partial
from itertools import combinations
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file
from torch import Tensor, nn
from transformers import SeamlessM4TConfig
from transformers.models.seamless_m4t.modeling_seamless_m4t import SeamlessM4TSpeechEncoder

from gdps_ds.analysis.sketch import Sketches
from gdps_ds.config import MineConfig
from gdps_ds.data.demo import build_demo_corpus
from gdps_ds.distributed.gatherer import GradientGatherer
from gdps_ds.model.families import set_training_mode
from tests.benchmarks.timing import ratio
from tests.launch import launch

D, H, LAYERS = 1024, 4096, 2
MEDIUM_LAYERS = 12
UTTERANCES, FRAMES = 8, 200
SETTINGS = MineConfig()


class Workload:
    """A forward and backward pass over a mixed batch, plain or mined."""

    def __init__(self, languages: int = 4, sites: int = LAYERS) -> None:
        torch.manual_seed(0)
        config = SeamlessM4TConfig(hidden_size=D, speech_encoder_intermediate_size=H, speech_encoder_layers=LAYERS)
        config.speech_encoder_layerdrop = 0.0
        self.model: nn.Module = SeamlessM4TSpeechEncoder(config)
        set_training_mode(self.model, True)
        self.features = torch.randn(UTTERANCES, FRAMES, 160)
        self.mask = torch.ones(UTTERANCES, FRAMES, dtype=torch.long)
        self.languages = torch.arange(UTTERANCES) % languages
        names = tuple(f"language{number}" for number in range(languages))
        blocks = [f"encoder.layers.{layer}.{ffn}" for ffn in ("ffn2", "ffn1") for layer in range(LAYERS)][:sites]
        self.gatherer = GradientGatherer(self.model, blocks, names, SETTINGS, 1, torch.device("cpu"))

    def losses(self) -> Tensor:
        """(B,) one number an utterance."""
        return self.model(self.features, attention_mask=self.mask).last_hidden_state.square().mean((1, 2))

    def plain(self) -> None:
        self.losses().sum().backward()
        self.model.zero_grad()

    def mined(self) -> None:
        with self.gatherer.attached():
            self.gatherer.watch(
                self.languages, torch.zeros_like(self.languages), self.mask, torch.full_like(self.languages, 10)
            )
            self.plain()

    def backward_per_language(self) -> None:
        """The usual way: one backward pass a language into ``.grad``, over one forward pass."""
        losses, count = self.losses(), int(self.languages.max()) + 1
        for language in range(count):
            (losses * (self.languages == language)).sum().backward(retain_graph=language < count - 1)
            self.model.zero_grad()


def measure() -> dict[str, float]:
    work = Workload()
    step_ratio = ratio(work.mined, work.plain, rounds=9)
    usual = ratio(work.backward_per_language, work.plain, rounds=3)
    peak = {name: _peak_memory(name) for name in ("plain", "mined")}
    many_languages, all_sites = Workload(languages=100), Workload(sites=2 * LAYERS)
    return {
        "step_ratio": step_ratio,
        "step_ratio_100_languages": ratio(many_languages.mined, many_languages.plain, rounds=5),
        "step_ratio_all_ffn": ratio(all_sites.mined, all_sites.plain, rounds=5),
        "vs_per_language_backward": (usual - 1) / max(step_ratio - 1, 1e-3),
        "bytes_ratio": _bytes_full() / _bytes_sketched(),
        "peak_memory_ratio": peak["mined"] / peak["plain"],
        "cosine_rmse": cosine_rmse(),
    }


def _bytes_full(languages: int = 4, sites: int = MEDIUM_LAYERS) -> float:
    return 4.0 * languages * sites * 2 * D * H


def _bytes_sketched(languages: int = 4, sites: int = MEDIUM_LAYERS, split: int = 1) -> float:
    """Core sketches of all sites, neuron sketches of those that are split, and the counts; fp32."""
    core = languages * SETTINGS.folds * 2 * SETTINGS.sketch**2
    neurons = languages * 2 * H * SETTINGS.sketch
    return 4.0 * (sites * core + split * neurons + 4 * languages * SETTINGS.folds)


def _peak_memory(which: str) -> float:
    """Peak resident bytes of a fresh process that makes two steps."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(partial(_steps, which))


def _steps(which: str) -> float:
    torch.set_num_threads(1)
    work = Workload()
    for _ in range(2):
        getattr(work, which)()
    # Not ru_maxrss, which starts at the size of the process that spawned this one.
    status = Path("/proc/self/status").read_text()
    return 1024.0 * float(status.split("VmHWM:")[1].split()[0])


def cosine_rmse() -> float:
    """Error of the cosines between languages' gradients, over all pairs and sites of a briefly trained demo model."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus = build_demo_corpus(folder / "corpus", train=400, dev=10, test=2, workers=1)
        overrides = (
            f"run.dir={folder / 'run'}", "run.arms=[gdps]", f"data.corpora=[{{layout: manifest, root: {corpus}}}]",
            "train.unify.updates=300", "train.specialise.updates=0", "mine.exact=['*.ffn1', '*.ffn2']", "track.progress=false",
        )  # fmt: skip
        code, output = launch("launchers/train.py", "--config", "ds_configs/experiments/demo.yaml", *overrides, timeout=900)
        assert code == 0, output[-3000:]
        sketches, exact = (
            Sketches.load(folder / "run" / "sketches.safetensors"),
            load_file(folder / "run" / "gradients.safetensors"),
        )
    errors = []
    for site, sketch in sketches.sites.items():
        core = sketch.core.sum(2).transpose(1, 0, 2, 3).reshape(len(sketches.languages), -1)
        full = np.concatenate([exact[f"{site}/{number}"].reshape(len(core), -1) for number in (0, 1)], axis=1)
        errors += [_cosine(core[a], core[b]) - _cosine(full[a], full[b]) for a, b in combinations(range(len(core)), 2)]
    return float(np.sqrt(np.mean(np.square(errors))))


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
