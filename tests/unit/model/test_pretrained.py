"""A checkpoint that is not the model it is taken for is refused before it is loaded, by the names of its tensors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece.sentencepiece_model_pb2 as pieces_pb2
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import SeamlessM4TConfig, SeamlessM4TForSpeechToText, SeamlessM4TModel, SeamlessM4TTokenizer

from gdps_ds.config import ModelConfig
from gdps_ds.data.manifest import DataError
from gdps_ds.distributed.comm import RankZeroError
from gdps_ds.evaluation.replica import load_checkpoint
from gdps_ds.model.families import load_model
from gdps_ds.model.pretrained import UnfitCheckpointError
from gdps_ds.model.tokens import load_tokenizer, train_tokenizer
from tests.tiny import ALONE, ARCHITECTURE

OTHER_TASKS = {
    "t2u_encoder_layers": 1, "t2u_decoder_layers": 1, "t2u_encoder_attention_heads": 2, "t2u_decoder_attention_heads": 2,
    "t2u_encoder_ffn_dim": 16, "t2u_decoder_ffn_dim": 16, "t2u_vocab_size": 20, "unit_hifi_gan_vocab_size": 20,
    "unit_embed_dim": 8, "lang_embed_dim": 4, "spkr_embed_dim": 4, "vocoder_num_langs": 2, "vocoder_num_spkrs": 2,
    "upsample_initial_channel": 32,
}  # fmt: skip
Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SeamlessM4TForSpeechToText]:
    """A whole checkpoint, and the model that it holds."""
    folder = tmp_path_factory.mktemp("whole")
    tokenizer = train_tokenizer(["good morning", "see you on monday"] * 5, ["eng"], folder, 40)
    torch.manual_seed(0)
    model = SeamlessM4TForSpeechToText(SeamlessM4TConfig(vocab_size=len(tokenizer), **ARCHITECTURE))
    model.save_pretrained(folder)
    return folder, model


def loaded(folder: Path, **settings: object) -> SeamlessM4TForSpeechToText:
    return load_model(ModelConfig.model_validate({"pretrained": str(folder)} | settings), load_tokenizer(folder), seed=7)


def changed(whole: Path, folder: Path, change: Callable[[Tensors], object]) -> Path:
    """A copy of a checkpoint whose tensors ``change`` has edited."""
    shutil.copytree(whole, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def lacking(count: int) -> Callable[[Tensors], object]:
    return lambda tensors: [tensors.pop(name) for name in sorted(tensors)[-count:]]


EMBEDDING, LAYER = "shared.weight", "speech_encoder.encoder.layers.1.ffn2.output_dense.weight"
FAULTS: dict[str, tuple[Callable[[Tensors], object], str]] = {
    "missing": (lacking(37), r": speech_encoder\.feature_projection\.layer_norm\.weight is missing; .*; and 32 more$"),
    "no embedding": (lambda held: held.pop(EMBEDDING), r": shared\.weight is missing$"),
    "the embedding by another name": (
        lambda held: held.update({"lm_head.weight": held.pop(EMBEDDING)}), r": shared\.weight is missing$"
    ),
    "another shape": (
        lambda held: held.update({LAYER: held[LAYER][:, :40].contiguous()}),
        r"ffn2\.output_dense\.weight has shape \(16, 40\), the model's is \(16, 48\)$",
    ),
    "a layer too many": (
        lambda held: held.update({LAYER.replace(".1.", ".2."): held[LAYER].clone()}),
        r"the model has no place for speech_encoder\.encoder\.layers\.2\.ffn2\.output_dense\.weight$",
    ),
    "an output layer of its own": (
        lambda held: held.update({"lm_head.weight": held[EMBEDDING] + 1}),
        r"lm_head\.weight is not shared\.weight, as tie_word_embeddings says$",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), FAULTS.values(), ids=FAULTS.keys())
def test_tensors_that_are_not_the_models_are_named(
    made: tuple[Path, SeamlessM4TForSpeechToText], tmp_path: Path, change: Callable[[Tensors], object], message: str
) -> None:
    folder = changed(made[0], tmp_path / "broken", change)
    with pytest.raises(UnfitCheckpointError, match=message):
        loaded(folder)
    with pytest.raises((DataError, RankZeroError), match=rf"{folder}: .*{message}"):
        load_checkpoint(str(folder), ALONE)


FORMATS = {
    "shards": {"max_shard_size": "20KB"},
    "pickle": {"safe_serialization": False},
    "shards of pickle": {"safe_serialization": False, "max_shard_size": "20KB"},
}


@pytest.mark.parametrize("options", FORMATS.values(), ids=FORMATS.keys())
def test_every_form_of_a_checkpoint_is_read(
    made: tuple[Path, SeamlessM4TForSpeechToText], tmp_path: Path, options: dict
) -> None:
    whole, model = made
    shutil.copytree(whole, tmp_path / "copy", ignore=shutil.ignore_patterns("model.safetensors"))
    model.save_pretrained(tmp_path / "copy", **options)
    same(loaded(tmp_path / "copy"), model)
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name != LAYER}
    for each in (tmp_path / "copy").glob("*model*"):
        if each.name != "sentencepiece.bpe.model":
            each.unlink()
    model.save_pretrained(tmp_path / "copy", state_dict=tensors, **options)
    with pytest.raises(UnfitCheckpointError, match=r": speech_encoder\.\S+\.ffn2\.output_dense\.weight is missing$"):
        loaded(tmp_path / "copy")


def same(read: SeamlessM4TForSpeechToText, model: torch.nn.Module) -> None:
    held = model.state_dict()
    assert {name for name, tensor in read.state_dict().items() if not torch.equal(tensor, held[name])} == set()


def test_a_multi_task_checkpoint_is_whole(made: tuple[Path, SeamlessM4TForSpeechToText], tmp_path: Path) -> None:
    """As they are published: in shards and half precision, with parts that speech-to-text does not need."""
    shutil.copytree(made[0], tmp_path / "all", ignore=shutil.ignore_patterns("*model.safetensors", "config.json"))
    model = SeamlessM4TModel(SeamlessM4TConfig(vocab_size=made[1].config.vocab_size, **ARCHITECTURE | OTHER_TASKS)).half()
    model.save_pretrained(tmp_path / "all", max_shard_size="40KB")
    assert {"text_encoder", "t2u_model", "vocoder"} < {name.split(".")[0] for name in model.state_dict()}
    same(loaded(tmp_path / "all"), model.float())
    # A checkpoint of before the counters of BatchNorm is as whole.
    index = json.loads((tmp_path / "all" / "model.safetensors.index.json").read_text())["weight_map"]
    for name in {file for key, file in index.items() if key.endswith("num_batches_tracked")}:
        held = load_file(tmp_path / "all" / name)
        kept = {key: tensor for key, tensor in held.items() if not key.endswith("num_batches_tracked")}
        save_file(kept, tmp_path / "all" / name, metadata={"format": "pt"})
    same(loaded(tmp_path / "all"), model)


def test_an_untied_checkpoint_needs_both_its_embeddings(made: tuple[Path, SeamlessM4TForSpeechToText], tmp_path: Path) -> None:
    """What ``save_pretrained`` leaves of a new untied model lacks the one that the decoder reads."""
    torch.manual_seed(1)
    untied = SeamlessM4TConfig(vocab_size=made[1].config.vocab_size, **ARCHITECTURE, tie_word_embeddings=False)
    model = SeamlessM4TForSpeechToText(untied)
    shutil.copytree(made[0], tmp_path / "untied")
    model.save_pretrained(tmp_path / "untied")
    with pytest.raises(UnfitCheckpointError, match=r": text_decoder\.embed_tokens\.weight is missing$"):
        loaded(tmp_path / "untied")
    held = load_file(tmp_path / "untied" / "model.safetensors")
    held["text_decoder.embed_tokens.weight"] = held.pop("shared.weight")
    save_file(held, tmp_path / "untied" / "model.safetensors", metadata={"format": "pt"})
    read = loaded(tmp_path / "untied")
    same(read, model)
    assert {name for name, _ in read.named_parameters()} == {name for name, _ in model.named_parameters()}


def test_weights_that_are_not_there_or_damaged_are_named(made: tuple[Path, SeamlessM4TForSpeechToText], tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(made[0], folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(OSError, match=rf"{weights} is damaged"):
        loaded(folder)
    weights.unlink()
    with pytest.raises(OSError, match=r"holds no weights \(model\.safetensors, "):
        loaded(folder)


def test_the_tokenizer_must_be_the_models(made: tuple[Path, SeamlessM4TForSpeechToText], tmp_path: Path) -> None:
    whole, _ = made
    tokenizer = load_tokenizer(whole)
    settings = ModelConfig(pretrained=str(whole))
    shutil.copytree(whole, tmp_path / "codes")
    generation = {"text_decoder_lang_to_code_id": {"eng": 7}}
    (tmp_path / "codes" / "generation_config.json").write_text(json.dumps(generation))
    with pytest.raises(UnfitCheckpointError, match=r"the code of 'eng' is 41 in the tokenizer, but 7 in generation_config"):
        loaded(tmp_path / "codes")
    tokenizer.add_tokens(["ŋ", "ɔ"])
    with pytest.raises(UnfitCheckpointError, match=r"the tokenizer has ids up to 43, but the embedding has 42 rows"):
        load_model(settings, tokenizer, seed=1)
    with pytest.raises(UnfitCheckpointError, match=r"ids up to 41, but the embedding has 30 rows \(vocab_size\)"):
        load_model(ModelConfig(config=ARCHITECTURE | {"vocab_size": 30}), load_tokenizer(whole), seed=1)
    with pytest.raises(UnfitCheckpointError, match=r"the tokenizer has special tokens alone \(5\), and no piece of text"):
        load_model(settings, without_pieces(tmp_path / "empty.model"), seed=1)
    with pytest.raises(OSError, match=r"'.*' has no tokenizer \(sentencepiece\.bpe\.model\)"):
        (tmp_path / "codes" / "sentencepiece.bpe.model").unlink()
        load_tokenizer(tmp_path / "codes")


def without_pieces(path: Path) -> SeamlessM4TTokenizer:
    proto = pieces_pb2.ModelProto()
    for name, kind in (("<unk>", 2), ("<s>", 3), ("</s>", 3), ("__eng__", 4)):
        proto.pieces.add(piece=name, type=kind, score=0.0)
    path.write_bytes(proto.SerializeToString())
    return SeamlessM4TTokenizer(str(path), additional_special_tokens=["__eng__"], src_lang="eng", tgt_lang="eng")


def test_something_must_be_trained(made: tuple[Path, SeamlessM4TForSpeechToText]) -> None:
    with pytest.raises(ValueError, match=r"^model\.freeze: \* leave nothing to train$"):
        loaded(made[0], freeze=["*"])
    assert all(parameter.requires_grad for parameter in loaded(made[0]).parameters())
