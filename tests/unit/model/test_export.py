"""A group's plain checkpoint computes what the split model computes for its languages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor, nn
from transformers import AutoProcessor, SeamlessM4TForSpeechToText, SeamlessM4TTokenizer

from gdps_ds.config import DecodeConfig, ModelConfig
from gdps_ds.data.manifest import Utterance
from gdps_ds.evaluation.decoding import generation_options
from gdps_ds.evaluation.replica import translate_with
from gdps_ds.model.export import ExportError, TrainedModel, as_group, is_whole, load_whole, save_plain, save_whole
from gdps_ds.model.families import load_model
from gdps_ds.model.surgery import split_model
from gdps_ds.model.tokens import load_tokenizer, train_tokenizer
from gdps_ds.plan import SharingPlan
from launchers.export import export
from tests import plain
from tests.tiny import ALONE, ARCHITECTURE, LANGUAGES, SITES, random_batch, tiny_model, tiny_plan

PLANS = [("preserve", "neurons"), ("constant", "neurons"), ("preserve", "svd")]


@pytest.fixture(scope="module")
def two_targets(tmp_path_factory: pytest.TempPathFactory) -> SeamlessM4TTokenizer:
    texts = ["good morning", "good evening", "see you on monday morning"] * 5
    return train_tokenizer(texts, ["eng", "fra"], tmp_path_factory.mktemp("tokenizer"), 40)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> SeamlessM4TTokenizer:
    texts = ["good morning", "good evening", "see you on monday morning", "the evening of monday"]
    return train_tokenizer(texts, ["eng"], tmp_path_factory.mktemp("tokenizer"), 50)


def trained(tokenizer: SeamlessM4TTokenizer, width: str = "preserve", init: str = "neurons") -> TrainedModel:
    """A split model whose lanes have learnt apart."""
    plan = tiny_plan(width, init, SITES)
    module = tiny_model().eval()
    router = split_model(module, plan, LANGUAGES, seed=1)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if ".private." in name:
                parameter += 0.1 * torch.randn_like(parameter)
    return TrainedModel(module, tokenizer, plan, LANGUAGES, router)


def logits(module: nn.Module, seed: int, utterance: int | None = None) -> Tensor:
    batch = random_batch(seed)
    rows = slice(None) if utterance is None else slice(utterance, utterance + 1)
    frames = None if utterance is None else int(batch.attention_mask[utterance].sum())
    return module(
        input_features=batch.input_features[rows, :frames],
        attention_mask=batch.attention_mask[rows, :frames],
        decoder_input_ids=batch.decoder_input_ids[rows],
    ).logits


@torch.no_grad()
@pytest.mark.parametrize(("width", "init"), PLANS)
def test_a_groups_model_computes_what_its_languages_get(tokenizer: SeamlessM4TTokenizer, width: str, init: str) -> None:
    model = trained(tokenizer, width, init)
    assert model.router is not None
    batch = random_batch(0)
    model.router.assign(batch.languages, "cpu")
    split = logits(model.module, 0)
    for index, group in enumerate(model.plan.groups):
        rows = [row for row, language in enumerate(batch.languages) if LANGUAGES[language] in group]
        others = [row for row in range(len(batch.languages)) if row not in rows]
        with as_group(model.module, model.plan, index) as dense:
            alone = logits(dense, 0)
        torch.testing.assert_close(alone[rows], split[rows], atol=1e-5, rtol=1e-5)
        assert (alone[others] - split[others]).abs().max() > 1e-3
    model.router.assign(batch.languages, "cpu")
    assert torch.equal(logits(model.module, 0), split), "the lanes are back in their places"


@torch.no_grad()
def test_transformers_alone_reads_a_groups_checkpoint(tokenizer: SeamlessM4TTokenizer, tmp_path: Path) -> None:
    """Without our padding of the adaptor's inputs, hence an utterance at a time."""
    model = trained(tokenizer)
    assert model.router is not None
    with as_group(model.module, model.plan, 1) as dense:
        save_plain(dense, tokenizer, tmp_path)
    loaded = SeamlessM4TForSpeechToText.from_pretrained(tmp_path).eval()
    assert not any(module._forward_pre_hooks for module in loaded.modules())
    languages = random_batch(0).languages
    for row in (1, 2):  # bem and est
        model.router.assign(languages[row : row + 1], "cpu")
        torch.testing.assert_close(logits(loaded, 0, row), logits(model.module, 0, row), atol=1e-5, rtol=1e-5)
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert processor.feature_extractor.sampling_rate == 16_000
    assert processor.tokenizer.get_vocab() == tokenizer.get_vocab()


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> list[Utterance]:
    """Bursts of noise of all languages, long enough to differ, with odd and even numbers of windows."""
    folder, rows = tmp_path_factory.mktemp("speech"), []
    for number in range(8):
        samples = np.random.default_rng(number).normal(size=8000 + 1370 * number)
        samples *= 0.1 * np.sin(np.arange(len(samples)) / (500 + 37 * number))
        soundfile.write(folder / f"{number}.wav", samples, 16_000)
        audio, language = str(folder / f"{number}.wav"), LANGUAGES[number % 4]
        rows.append(Utterance(str(number), audio, language, ("eng", "fra")[number // 4], None, duration=len(samples) / 16_000))
    return rows


def lively(model: SeamlessM4TForSpeechToText) -> SeamlessM4TForSpeechToText:
    """Layers strong enough that translations depend on the speech."""
    for parameter in model.text_decoder.layers.parameters():
        parameter.data *= 6.0 if parameter.dim() == 2 else 1.0
    return model.eval()


def launcher_model(tokenizer: SeamlessM4TTokenizer, **config: object) -> SeamlessM4TForSpeechToText:
    settings = ModelConfig.model_validate({"config": ARCHITECTURE | {"max_source_positions": 512} | config})
    return lively(load_model(settings, tokenizer, seed=3))


@pytest.mark.parametrize(
    ("made", "split"),
    [
        ("from nothing", False),
        ("from nothing", True),
        ("from a checkpoint", True),
        ("from an export", False),
        ("untied", True),
        ("untied from an export", False),
    ],
)
def test_an_export_translates_in_transformers_as_the_run_does(
    two_targets: SeamlessM4TTokenizer, speech: list[Utterance], tmp_path: Path, made: str, split: bool
) -> None:
    module = launcher_model(two_targets, **({"tie_word_embeddings": False} if "untied" in made else {}))
    if "from a" in made:
        if made == "from a checkpoint":
            module.save_pretrained(tmp_path / "given")
            two_targets.save_pretrained(tmp_path / "given")
        else:
            save_plain(module, two_targets, tmp_path / "given")
        module = load_model(ModelConfig(pretrained=str(tmp_path / "given")), load_tokenizer(tmp_path / "given"), seed=3).eval()
    plan = tiny_plan(sites=SITES) if split else SharingPlan.uniform(LANGUAGES)
    router = split_model(module, plan, LANGUAGES, seed=1) if split else None
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if ".private." in name:
                parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
    model = TrainedModel(module, two_targets, plan, LANGUAGES, router)
    decode = DecodeConfig(beams=3, max_new_tokens=12, length_penalty=0.6, repetition_penalty=1.1, max_seconds=30.0)
    run = translate_with(model, speech, ALONE, decode)
    assert len({row.hypothesis for row in run}) > 4
    for folder, languages in export(model, tmp_path / "out", decode, whole=False):
        ours = {row.id: row.hypothesis for row in run if row.source_lang in languages}
        assert plain.translated(folder, [each for each in speech if each.id in ours]) == ours


def test_a_generation_config_for_another_search_is_no_obstacle(two_targets: SeamlessM4TTokenizer, tmp_path: Path) -> None:
    """What a checkpoint says of sampling and beams, transformers would not save beside a greedy search."""
    module = launcher_model(two_targets)
    module.generation_config.update(do_sample=True, temperature=0.7, top_p=0.9, early_stopping=True)
    save_plain(module, two_targets, tmp_path, generation_options(DecodeConfig(beams=1, max_new_tokens=9, length_penalty=0.5)))
    read = SeamlessM4TForSpeechToText.from_pretrained(tmp_path).generation_config
    assert (read.do_sample, read.num_beams, read.max_new_tokens) == (False, 1, 9)
    assert list(read.text_decoder_lang_to_code_id) == ["eng", "fra"]
    assert module.generation_config.do_sample, "the model's own is as it was"


def test_every_tensor_of_an_untied_export_is_the_models(two_targets: SeamlessM4TTokenizer, tmp_path: Path) -> None:
    module = launcher_model(two_targets, tie_word_embeddings=False)
    save_plain(module, two_targets, tmp_path)
    loaded, info = SeamlessM4TForSpeechToText.from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] == []
    read = loaded.state_dict()
    assert {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, read.pop(name))} == set()
    assert read == {}
    assert not torch.equal(loaded.lm_head.weight, loaded.text_decoder.embed_tokens.weight)


def test_an_export_that_would_lack_a_tensor_is_refused(two_targets: SeamlessM4TTokenizer, tmp_path: Path) -> None:
    """A model that a library saves otherwise than it reads it."""
    module = launcher_model(two_targets)
    module.lm_head.weight = nn.Parameter(module.lm_head.weight + 1)  # the config goes on saying that it is tied
    with pytest.raises(ExportError, match=r"transformers would read another model: lm_head\.weight has other values"):
        save_plain(module, two_targets, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@torch.no_grad()
@pytest.mark.parametrize("uniform", [False, True])
def test_a_whole_model_comes_back(tokenizer: SeamlessM4TTokenizer, tmp_path: Path, uniform: bool) -> None:
    model = trained(tokenizer)
    if uniform:
        model = TrainedModel(tiny_model().eval(), tokenizer, SharingPlan.uniform(LANGUAGES), LANGUAGES, None)
    save_whole(model, tmp_path)
    assert is_whole(tmp_path)
    loaded = load_whole(tmp_path)
    assert (loaded.plan.digest, loaded.languages) == (model.plan.digest, LANGUAGES)
    for each in (model, loaded):
        if each.router is not None:
            each.router.assign(random_batch(0).languages, "cpu")
    tensors = loaded.module.state_dict()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in model.module.state_dict().items())
    torch.testing.assert_close(logits(loaded.module.eval(), 0), logits(model.module, 0), atol=1e-5, rtol=1e-5)


def test_weights_of_another_plan_are_refused(tokenizer: SeamlessM4TTokenizer, tmp_path: Path) -> None:
    model = trained(tokenizer)
    save_whole(model, tmp_path)
    tiny_plan("constant", sites=SITES).save(tmp_path / "plan.json")
    with pytest.raises(RuntimeError, match="private"):
        load_whole(tmp_path)
