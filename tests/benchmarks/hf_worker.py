"""Rank program of :mod:`tests.benchmarks.train`: transformers' ``Seq2SeqTrainer`` on the data and model of a run of ours."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, TrainerCallback
from transformers.trainer_pt_utils import LengthGroupedSampler

from gdps_ds.data.collate import IGNORED_LABEL
from gdps_ds.data.features import FeatureStore
from gdps_ds.data.table import LabelTable
from gdps_ds.model.families import load_model
from gdps_ds.model.tokens import load_tokenizer
from gdps_ds.training.inputs import DECODER_START, PAD
from gdps_ds.training.trained import run_config


class Utterances(Dataset[dict[str, Any]]):
    """Features and labels that the run has prepared."""

    def __init__(self, folder: Path) -> None:
        self.features = FeatureStore(folder / "train.features")
        self.labels = LabelTable(folder / "train.labels.arrow")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        features = self.features[index]
        return {"input_features": features, "labels": self.labels[index]}


class Collate:
    """Pads a batch, and counts what it pads."""

    def __init__(self) -> None:
        self.frames = self.padded = 0

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        longest = max(len(row["input_features"]) for row in rows)
        features, mask = torch.zeros(len(rows), longest, 160), torch.zeros(len(rows), longest, dtype=torch.long)
        labels = torch.full((len(rows), max(len(row["labels"]) for row in rows)), IGNORED_LABEL)
        for index, row in enumerate(rows):
            frames = len(row["input_features"])
            features[index, :frames] = torch.from_numpy(np.array(row["input_features"]))
            mask[index, :frames] = 1
            labels[index, : len(row["labels"])] = torch.tensor(row["labels"])
        self.frames += int(mask.sum())
        self.padded += mask.numel()
        # With label smoothing the trainer keeps the labels from the model, which then cannot shift them itself.
        decoder = labels.roll(1, dims=1)
        decoder[:, 0] = DECODER_START
        decoder.masked_fill_(decoder == IGNORED_LABEL, PAD)
        return {"input_features": features, "attention_mask": mask, "decoder_input_ids": decoder, "labels": labels}


class LengthGroupedTrainer(Seq2SeqTrainer):
    """``group_by_length``, whose own way to the lengths knows text and ``datasets`` only."""

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthGroupedSampler:
        return LengthGroupedSampler(self.args.train_batch_size, lengths=self.train_dataset.features.lengths.tolist())


class Clock(TrainerCallback):
    """Seconds of every step."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *arguments: Any, **options: Any) -> None:
        self.ends.append(time.perf_counter())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--local_rank", type=int, default=0)
    parser.add_argument("--run", type=Path, required=True, help="run directory of ours")
    parser.add_argument("--batch", type=int, required=True, help="utterances of a micro-batch")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--skip", type=int, required=True, help="first steps, which do not count")
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = run_config(options.run)
    model = load_model(config.model, load_tokenizer(options.run / "tokenizer"), config.run.seed)
    settings = json.loads((options.run / "deepspeed.json").read_text())
    settings |= {key: "auto" for key in ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")}
    # accelerate takes a DeepSpeed file without these to mean fp16.
    settings = {"fp16": {"enabled": False}, "bf16": {"enabled": False}} | settings
    collate, clock = Collate(), Clock()
    trainer = LengthGroupedTrainer(
        model=model,
        args=Seq2SeqTrainingArguments(
            output_dir=str(options.run / "hf"),
            deepspeed=settings,
            per_device_train_batch_size=options.batch,
            max_steps=options.steps,
            learning_rate=config.train.unify.lr,
            label_smoothing_factor=config.train.label_smoothing,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            logging_steps=options.steps,
            use_cpu=not torch.cuda.is_available(),
            remove_unused_columns=False,
        ),
        train_dataset=Utterances(options.run / "data"),
        data_collator=collate,
        callbacks=[clock],
    )
    trainer.train()
    if trainer.is_world_process_zero():
        counted = options.steps - options.skip
        spent = clock.ends[-1] - clock.ends[options.skip - 1]
        world = torch.distributed.get_world_size()
        result = {"speed": counted * options.batch * world / spent, "padding": 1 - collate.frames / collate.padded}
        (options.run / "hf.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
