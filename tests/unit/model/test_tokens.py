"""Labels are the tokenizer's own ids of ordinary text, and special tokens in a text are text."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from transformers import SeamlessM4TTokenizer

from gdps_ds.model.tokens import language_code, language_codes, load_tokenizer, target_ids, train_tokenizer, unknown_share

SPECIAL = ["</s>", "<s>", "<pad>", "<unk>", "__eng__", "__fra__"]
TEXTS = ["the quick brown fox", "jumps over the lazy dog", "a_b <c> d/e <pad> is a tag", "le chien dort dans la maison"] * 20


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> SeamlessM4TTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(TEXTS, ["eng", "fra"], folder, vocab_size=80)
    return load_tokenizer(folder)


@pytest.mark.parametrize("special", SPECIAL)
@pytest.mark.parametrize("text", ["{}", "{} the dog", "the {} dog", "the{}dog", "the dog {}", "{}{}"])
def test_special_tokens_in_a_text_are_text(tokenizer: SeamlessM4TTokenizer, special: str, text: str) -> None:
    text = text.replace("{}", special)
    (ids,) = target_ids(tokenizer, [text], "fra")
    assert tokenizer.convert_ids_to_tokens([ids[0], ids[-1]]) == ["__fra__", "</s>"]
    assert not set(ids[1:-1]) & set(tokenizer.all_special_ids)
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert unknown_share(tokenizer, text) == 0


def test_a_text_of_unknown_characters_is_never_a_special_token(tmp_path: Path) -> None:
    """SentencePiece gives a run of them as one piece, which may read ``<pad>``, and is no padding for that."""
    tokenizer = train_tokenizer(["cow", "crow crowd", "cord"] * 5, ["eng"], tmp_path, 20)
    (ids,) = target_ids(tokenizer, ["</s> cow <pad>"], "eng")
    unknown = tokenizer.unk_token_id
    assert [number for number in ids[1:-1] if number in tokenizer.all_special_ids] == [unknown] * ids.count(unknown)
    assert unknown in ids and unknown_share(tokenizer, "</s> cow <pad>") == pytest.approx(8 / 12)


def test_a_tokenizer_made_of_texts_with_special_tokens_can_write_them(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["cow", "crow </s> crowd", "cord <unk>"] * 5, ["eng"], tmp_path, 40)
    (ids,) = target_ids(tokenizer, ["crow</s>cow <unk>"], "eng")
    assert tokenizer.decode(ids, skip_special_tokens=True) == "crow</s>cow <unk>"


def test_other_texts_give_the_tokenizers_own_ids(tokenizer: SeamlessM4TTokenizer) -> None:
    """As transformers' call gives them, which puts ``</s>`` first; characters that it does not know included."""
    draw = random.Random(0)
    alphabet = "abcdefgh \t.,'<>/_\u00e9\u4f60\u597d\u2581\u00a0\U0001f600 "
    texts = ["".join(draw.choices(alphabet, k=draw.randint(1, 40))) for _ in range(300)]
    tokenizer.tgt_lang = "eng"
    wanted = [ids[1:] for ids in tokenizer(text_target=texts, padding=False)["input_ids"]]
    assert target_ids(tokenizer, texts, "eng") == wanted


def test_tokens_that_were_added_for_text_are_used(tokenizer: SeamlessM4TTokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    larger = load_tokenizer(tmp_path)
    larger.add_tokens(["\u014b"])
    larger.tgt_lang = "eng"
    texts = ["\u014ba the dog\u014b", "the \u014b"]
    ids = target_ids(larger, texts, "eng")
    assert ids == [row[1:] for row in larger(text_target=texts, padding=False)["input_ids"]]
    assert all(larger.convert_tokens_to_ids("\u014b") in row for row in ids)


def test_the_share_of_characters_without_a_piece(tokenizer: SeamlessM4TTokenizer) -> None:
    shares = [unknown_share(tokenizer, text) for text in ("the dog", "\u4f60\u597d\u4f60\u597d the dog", "\u4f60 \u597d")]
    assert shares == pytest.approx([0, 4 / 10, 1])


def test_a_language_without_a_code_is_refused_with_those_that_there_are(tokenizer: SeamlessM4TTokenizer) -> None:
    ids = tokenizer.convert_tokens_to_ids(["__eng__", "__fra__"])
    assert language_codes(tokenizer) == dict(zip(("eng", "fra"), ids, strict=True))
    assert language_code(tokenizer, "fra") == ids[1]
    with pytest.raises(ValueError, match=r"no target language 'en' \(token __en__\); it has eng, fra$"):
        target_ids(tokenizer, ["the dog"], "en")
