"""A group's plain checkpoint computes what the split model computes for its languages."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoProcessor, SeamlessM4TForSpeechToText, SeamlessM4TTokenizer

from gdps_ds.model.export import TrainedModel, as_group, is_whole, load_whole, save_plain, save_whole
from gdps_ds.model.families import train_tokenizer
from gdps_ds.model.surgery import split_model
from gdps_ds.plan import SharingPlan
from tests.tiny import LANGUAGES, SITES, random_batch, tiny_model, tiny_plan

PLANS = [("preserve", "neurons"), ("constant", "neurons"), ("preserve", "svd")]


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
    plain = SeamlessM4TForSpeechToText.from_pretrained(tmp_path).eval()
    assert not any(module._forward_pre_hooks for module in plain.modules())
    languages = random_batch(0).languages
    for row in (1, 2):  # bem and est
        model.router.assign(languages[row : row + 1], "cpu")
        torch.testing.assert_close(logits(plain, 0, row), logits(model.module, 0, row), atol=1e-5, rtol=1e-5)
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert processor.feature_extractor.sampling_rate == 16_000
    assert processor.tokenizer.get_vocab() == tokenizer.get_vocab()


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
