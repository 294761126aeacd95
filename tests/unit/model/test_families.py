from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import SeamlessM4TConfig, SeamlessM4TForSpeechToText

from gdps_ds.config import ModelConfig
from gdps_ds.model.families import find_sites, load_model, set_training_mode
from gdps_ds.model.tokens import load_tokenizer, target_ids, train_tokenizer
from tests.tiny import ARCHITECTURE, random_batch, tiny_model

TEXTS = ["the quick brown fox", "jumps over the lazy dog", "le chien dort dans la maison"] * 20


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(TEXTS, ["eng", "fra"], folder, vocab_size=80)
    return folder


def test_labels_start_with_the_language_and_end_the_sentence(tokenizer_folder: Path) -> None:
    """The tokenizer gives </s> __fra__ ... </s>; the first </s> is the decoder's start token and no label."""
    tokenizer = load_tokenizer(tokenizer_folder)
    (ids,) = target_ids(tokenizer, ["le chien dort"], "fra")
    assert tokenizer.convert_ids_to_tokens([ids[0], ids[-1]]) == ["__fra__", "</s>"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "le chien dort"
    assert max(ids) < len(tokenizer)


def test_every_language_code_is_an_id_of_its_own(tokenizer_folder: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    codes = tokenizer.convert_tokens_to_ids(["__eng__", "__fra__"])
    pieces = {tokenizer.convert_tokens_to_ids(piece) for text in TEXTS for piece in tokenizer.tokenize(text)}
    assert len({*codes} | pieces) == 2 + len(pieces)


def test_a_new_model_repeats_by_seed(tokenizer_folder: Path) -> None:
    settings = ModelConfig(config=ARCHITECTURE, vocab_size=80)
    tokenizer = load_tokenizer(tokenizer_folder)
    one, same, other = (load_model(settings, tokenizer, seed) for seed in (1, 1, 2))
    assert torch.equal(one.lm_head.weight, same.lm_head.weight)
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)
    assert one.config.vocab_size == len(tokenizer)
    assert one.config.speech_encoder_layerdrop == one.config.decoder_layerdrop == 0
    assert one.generation_config.text_decoder_lang_to_code_id["fra"] == tokenizer.convert_tokens_to_ids("__fra__")


def test_a_checkpoint_is_loaded_with_its_weights_and_our_overrides(tokenizer_folder: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    config = SeamlessM4TConfig(vocab_size=len(tokenizer), **ARCHITECTURE, speech_encoder_layerdrop=0.1)
    saved = SeamlessM4TForSpeechToText(config)
    saved.save_pretrained(tmp_path)
    settings = ModelConfig(pretrained=str(tmp_path), config={"dropout": 0.3}, freeze=("text_decoder.*",))
    model = load_model(settings, tokenizer, seed=1)
    assert torch.equal(model.lm_head.weight, saved.lm_head.weight)
    assert (model.config.dropout, model.config.speech_encoder_layerdrop) == (0.3, 0.0)
    frozen = {name.split(".")[0] for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {"text_decoder"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"config": {"hidden_sizes": 8}}, r"model\.config: SeamlessM4TConfig has no field hidden_sizes"),
        ({"config": ARCHITECTURE, "freeze": ("nothing.*",)}, r"model\.freeze: 'nothing\.\*' matches no parameter"),
    ],
)
def test_faults_name_the_option(tokenizer_folder: Path, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_model(ModelConfig.model_validate(settings), load_tokenizer(tokenizer_folder), seed=1)


def test_a_vocabulary_without_room_for_every_character_names_the_option(tmp_path: Path) -> None:
    texts = ["".join(map(chr, range(0x4E00, 0x4E80)))]
    with pytest.raises(ValueError, match=r"model\.vocab_size: no tokenizer of 60 pieces .* smaller than .* 60 vs 132"):
        train_tokenizer(texts, ["eng"], tmp_path, 60)
    assert len(train_tokenizer(texts, ["eng"], tmp_path, 140)) > 132


def test_sites_come_in_layer_order() -> None:
    model = tiny_model()
    sites = find_sites(model, ["speech_encoder.encoder.layers.*.ffn2", "speech_encoder.encoder.layers.*.ffn1"])
    assert [name.split(".layers.")[1] for name in sites] == ["0.ffn1", "0.ffn2", "1.ffn1", "1.ffn2"]
    with pytest.raises(ValueError, match=r"mine\.sites: 'encoder\.\*' matches no feed-forward block; there are speech_encoder"):
        find_sites(model, ["encoder.*"])


def test_an_utterance_gives_the_same_logits_alone_and_in_any_batch() -> None:
    """The adaptor's convolutions must not read padding; lengths of every remainder of its stride."""
    model = tiny_model().eval()
    batch = random_batch(0, size=16, frames=40)
    lengths = torch.arange(25, 41)
    mask = (torch.arange(40) < lengths[:, None]).long()
    features = torch.randn(16, 40, 160) * mask.unsqueeze(-1)
    together = model(input_features=features, attention_mask=mask, decoder_input_ids=batch.decoder_input_ids).logits
    for row, length in enumerate(lengths.tolist()):
        alone = model(
            input_features=features[row : row + 1, :length],
            attention_mask=mask[row : row + 1, :length],
            decoder_input_ids=batch.decoder_input_ids[row : row + 1],
        ).logits[0]
        torch.testing.assert_close(together[row], alone, atol=2e-5, rtol=1e-4, msg=f"{length} frames")


def test_unpadded_batches_are_computed_as_transformers_does() -> None:
    """Keeping padding out changes nothing where there is none."""
    ours, plain = tiny_model().eval(), SeamlessM4TForSpeechToText(tiny_model().config).eval()
    plain.load_state_dict(ours.state_dict())
    features, mask = torch.randn(3, 33, 160), torch.ones(3, 33, dtype=torch.long)
    inputs = {"input_features": features, "attention_mask": mask, "decoder_input_ids": torch.full((3, 4), 5)}
    torch.testing.assert_close(ours(**inputs).logits, plain(**inputs).logits, atol=1e-6, rtol=1e-6)


def test_batch_norm_statistics_never_move() -> None:
    model = tiny_model()
    set_training_mode(model, True)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    batch = random_batch(0)
    model(input_features=batch.input_features, attention_mask=batch.attention_mask, decoder_input_ids=batch.decoder_input_ids)
    assert model.training
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())
