"""A COMET checkpoint of a few kilobytes with random weights, laid out as the published ones are."""

from __future__ import annotations

import string
import warnings
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import BertConfig, BertTokenizerFast

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def build_comet(folder: Path, seed: int = 0) -> Path:
    """Writes ``hparams.yaml``, ``checkpoints/model.ckpt`` and the encoder that they name; gives the checkpoint's path."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pytorch_lightning
        from comet.models import RegressionMetric

    encoder = folder / "encoder"
    encoder.mkdir(parents=True)
    letters = string.ascii_lowercase + string.digits
    vocabulary = [*SPECIAL, *letters, *(f"##{letter}" for letter in letters)]
    (encoder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizerFast(vocab_file=str(encoder / "vocab.txt")).save_pretrained(encoder)
    # The default range of .02 is so small at this size that all sentences would score alike.
    BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=128, initializer_range=0.5,
    ).save_pretrained(encoder)  # fmt: skip
    torch.manual_seed(seed)
    model = RegressionMetric(
        encoder_model="BERT",
        pretrained_model=str(encoder),
        hidden_sizes=[8],
        load_pretrained_weights=False,
        local_files_only=True,
        layer_transformation="sparsemax",
    )
    hparams: dict[str, Any] = dict(model.hparams)
    (folder / "checkpoints").mkdir()
    contents = {
        "state_dict": model.state_dict(),
        "hyper_parameters": hparams,
        "pytorch-lightning_version": pytorch_lightning.__version__,
    }
    torch.save(contents, folder / "checkpoints" / "model.ckpt")
    (folder / "hparams.yaml").write_text(yaml.safe_dump(hparams))
    return folder / "checkpoints" / "model.ckpt"
