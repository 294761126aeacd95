"""SeamlessM4T's tokenizers: how they are made, read, and turn translations into labels."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import sentencepiece
from transformers import SeamlessM4TTokenizer
from transformers.tokenization_utils import Trie

SPACE = "\u2581"
"""How SentencePiece writes the space before a word."""
_CODE = re.compile(r"__(\w+?)__")


def train_tokenizer(texts: Iterable[str], languages: Sequence[str], folder: Path, vocab_size: int) -> SeamlessM4TTokenizer:
    """A SentencePiece model of ``texts`` wrapped as SeamlessM4T's tokenizer, with a code for each target language.

    Byte pair encoding: on a small text it keeps whole words, where a unigram model falls apart into characters.

    Raises:
        ValueError: ``vocab_size`` is below the number of characters.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_sentences(texts),
            model_prefix=str(folder / "sentencepiece"),
            vocab_size=vocab_size,
            model_type="bpe",
            hard_vocab_limit=False,
            character_coverage=1.0,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(f"model.vocab_size: no tokenizer of {vocab_size} pieces can be made ({error})") from None
    tokenizer = SeamlessM4TTokenizer(
        str(folder / "sentencepiece.model"),
        additional_special_tokens=[f"__{language}__" for language in languages],
        src_lang=languages[0],
        tgt_lang=languages[0],
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    """The texts, with the characters of symbols that SentencePiece passes over in them."""
    for text in texts:
        yield text
        for symbol in ("<unk>", "<s>", "</s>"):
            if symbol in text:
                yield " ".join(symbol)


def load_tokenizer(path: str | Path) -> SeamlessM4TTokenizer:
    """A checkpoint's tokenizer.

    Raises:
        OSError: there is none.
    """
    try:
        return SeamlessM4TTokenizer.from_pretrained(str(path))
    except TypeError as error:  # the library goes on without a file of pieces until it opens it
        raise OSError(f"'{path}' has no tokenizer ({SeamlessM4TTokenizer.vocab_files_names['vocab_file']})") from error


def tokenizer_digest(tokenizer: SeamlessM4TTokenizer) -> str:
    """SHA-256 in hex of all that labels depend on: the pieces, and the tokens beside them."""
    tokens = sorted((number, str(token), token.special) for number, token in tokenizer.added_tokens_decoder.items())
    return hashlib.sha256(tokenizer.sp_model.serialized_model_proto() + repr(tokens).encode()).hexdigest()


def target_ids(tokenizer: SeamlessM4TTokenizer, texts: Sequence[str], language: str) -> list[list[int]]:
    """Label ids ``__lang__ w1 .. wn </s>``.

    Texts are text: of ``</s>`` or ``__eng__`` in one, the tokenizer's own call would make a special token, and here it is cut
    into pieces like anything else. (That call also puts ``</s>`` first, which is no label: the model shifts labels right with
    that very token as its decoder start.)

    Raises:
        ValueError: the tokenizer has no code of the language.
    """
    code, end = language_code(tokenizer, language), tokenizer.eos_token_id
    return [[code, *(number for _, number in _pieces(tokenizer, text)), end] for text in texts]


def unknown_share(tokenizer: SeamlessM4TTokenizer, text: str) -> float:
    """The share of a text's characters, spaces left out, that the tokenizer has no piece for."""
    sizes = [(len(piece.replace(SPACE, "")), number == tokenizer.unk_token_id) for piece, number in _pieces(tokenizer, text)]
    return sum(size for size, unknown in sizes if unknown) / max(1, sum(size for size, _ in sizes))


def _pieces(tokenizer: SeamlessM4TTokenizer, text: str) -> Iterator[tuple[str, int]]:
    """The pieces of a text with their ids, the same as the tokenizer's wherever the text holds no special token."""
    sentencepieces, unknown = tokenizer.sp_model, tokenizer.unk_token_id
    added = {token.content: number for number, token in tokenizer.added_tokens_decoder.items() if not token.special}
    for part in Trie(added).split(SPACE + text.replace(SPACE, " ")):
        if part in added:
            yield part, added[part]
            continue
        for piece in tokenizer._tokenize(part):
            # Characters without a piece come as they are, and may read like the name of a control symbol.
            number = sentencepieces.piece_to_id(piece)
            none = sentencepieces.is_unknown(number) or sentencepieces.is_control(number)
            yield piece, unknown if none else number + tokenizer.fairseq_offset


def language_code(tokenizer: SeamlessM4TTokenizer, language: str) -> int:
    """The token that starts a translation into ``language``.

    Raises:
        ValueError: there is none; names those that there are.
    """
    token = f"__{language}__"
    code: int = tokenizer.convert_tokens_to_ids(token)
    if code == tokenizer.unk_token_id:
        codes = ", ".join(sorted(language_codes(tokenizer))) or "none"
        raise ValueError(f"the tokenizer has no target language '{language}' (token {token}); it has {codes}")
    return code


def language_codes(tokenizer: SeamlessM4TTokenizer) -> dict[str, int]:
    """Language -> the token that starts a translation into it."""
    found = {match[1]: number for token, number in tokenizer.get_added_vocab().items() if (match := _CODE.fullmatch(token))}
    return dict(sorted(found.items()))
