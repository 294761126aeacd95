"""Whether a checkpoint on disk or on the hub is the model that it is taken for: its tensors and its tokenizer.

``from_pretrained`` draws tensors that a checkpoint lacks at random, and leaves out those that the model has no place for. So
names and shapes are read from the files themselves before they are loaded, whatever the ZeRO stage; of safetensors, that reads
the headers.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import SeamlessM4TTokenizer
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME, cached_file
from transformers.utils.hub import get_checkpoint_shard_files

WEIGHT_FILES = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME)
"""In the order in which ``from_pretrained`` takes the first that is there."""
OTHER_TASKS = ("text_encoder", "t2u_model", "vocoder")
"""Parts of a multi-task checkpoint that speech-to-text does not need."""
NOT_LEARNT = ".num_batches_tracked"
"""BatchNorm's counter, which older checkpoints do not have and frozen statistics do not read."""
LISTED = 5

Shape = tuple[int, ...]


class UnfitCheckpointError(ValueError):
    """A checkpoint that lacks, or has too much of, what the model needs; the message names what."""


def check_weights(name: str, model: nn.Module) -> None:
    """Compare the tensors of a checkpoint's files with those of a model, which may be on the meta device.

    Raises:
        UnfitCheckpointError: tensors are missing, of another shape or without a place, or the model ties what differs.
        OSError: there are no weights of this name, or a file of them is missing or damaged.
    """
    files = weight_files(name)
    held = {key: shape for file in files for key, shape in _shapes(file).items()}
    faults = [*_faults(held, model), *_differing_ties(files, held.keys(), model)]
    if faults:
        listing = "; ".join(faults[:LISTED]) + (f"; and {len(faults) - LISTED} more" if len(faults) > LISTED else "")
        raise UnfitCheckpointError(f"'{name}' does not hold the model that its config.json describes: {listing}")


def check_tokenizer(tokenizer: SeamlessM4TTokenizer, rows: int) -> None:
    """Whether a tokenizer can write text, in ids that an embedding of ``rows`` rows has.

    Raises:
        UnfitCheckpointError: it cannot.
    """
    ids = set(tokenizer.get_vocab().values())
    if not ids - set(tokenizer.all_special_ids):
        raise UnfitCheckpointError(f"the tokenizer has special tokens alone ({len(ids)}), and no piece of text")
    if max(ids) >= rows:
        raise UnfitCheckpointError(f"the tokenizer has ids up to {max(ids)}, but the embedding has {rows} rows (vocab_size)")


def weight_files(name: str) -> list[Path]:
    """The files that ``from_pretrained`` reads the weights from; on the hub, they are fetched.

    Raises:
        OSError: there are none.
    """
    for each in WEIGHT_FILES:
        found = cached_file(name, each, _raise_exceptions_for_missing_entries=False)
        if found is not None:
            paths = get_checkpoint_shard_files(name, found)[0] if each.endswith(".json") else [found]
            return [Path(path) for path in paths]
    raise OSError(f"'{name}' holds no weights ({', '.join(WEIGHT_FILES)})")


def _shapes(file: Path) -> dict[str, Shape]:
    if file.suffix != ".safetensors":
        return {key: tuple(tensor.shape) for key, tensor in _unpickled(file, "meta").items()}
    try:
        with safe_open(file, framework="pt") as opened:
            return {key: tuple(opened.get_slice(key).get_shape()) for key in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise OSError(f"{file} is damaged ({error})") from error


def _unpickled(file: Path, device: str) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = torch.load(file, map_location=device, weights_only=True)
    return tensors


def _faults(held: Mapping[str, Shape], model: nn.Module) -> list[str]:
    wanted = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    # What a tied tensor is read from is the one that the model has it from; without ties, each is read by its own name.
    needed = {key for key, *_ in _ties(model)} | (wanted.keys() - {key for tie in _ties(model) for key in tie})
    known = wanted.keys() | {key for key, _ in model.named_buffers()}
    missing = [f"{key} is missing" for key in wanted if key in needed - held.keys() and not key.endswith(NOT_LEARNT)]
    other = [f"{k} has shape {held[k]}, the model's is {wanted[k]}" for k in wanted if k in held and held[k] != wanted[k]]
    unused = [f"the model has no place for {key}" for key in held if key not in known and key.split(".")[0] not in OTHER_TASKS]
    return [*missing, *other, *sorted(unused)]


def _ties(model: nn.Module) -> list[list[str]]:
    """Names of each tensor that the model has under several names, the one that it is read from first."""
    config = getattr(model, "config", None)
    if config is not None and not config.tie_word_embeddings:
        # The class makes the two embeddings one at first, but reads each by its own name; only the decoder's is used.
        return [["text_decoder.embed_tokens.weight", "shared.weight"]]
    names: dict[int, list[str]] = {}
    for key, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(key)
    return [each for each in names.values() if len(each) > 1]


def _differing_ties(files: Iterable[Path], held: Iterable[str], model: nn.Module) -> list[str]:
    """Tensors that are one in the model, but of different values in the files."""
    if not model.config.tie_word_embeddings:  # type: ignore[union-attr]
        return []
    present = [[key for key in tie if key in set(held)] for tie in _ties(model)]
    wanted = {key for tie in present if len(tie) > 1 for key in tie}
    if not wanted:
        return []
    values = dict(itertools.chain.from_iterable(_read(file, wanted).items() for file in files))
    return [
        f"{other} is not {first}, as tie_word_embeddings says"
        for first, *others in present
        for other in others
        if values[first].shape == values[other].shape and not torch.equal(values[first], values[other])
    ]


def _read(file: Path, wanted: set[str]) -> dict[str, Tensor]:
    if file.suffix != ".safetensors":
        return {key: tensor for key, tensor in _unpickled(file, "cpu").items() if key in wanted}
    with safe_open(file, framework="pt") as opened:
        return {key: opened.get_tensor(key) for key in wanted & set(opened.keys())}
