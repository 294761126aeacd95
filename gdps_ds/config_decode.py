"""Section ``decode``: how a test set is translated, and how translations are scored and compared."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gdps_ds.fields import Count, Location, Positive, Section


class DecodeConfig(Section):
    """Beam search, and how its translations are scored and compared."""

    beams: Count = Field(5, description="beams of the search; 1 is greedy")
    max_new_tokens: Count = Field(128, description="longest translation")
    length_penalty: float = Field(1.0, description="a beam's score is divided by its length to this power; higher is longer")
    repetition_penalty: Positive = Field(1.0, description="above 1 makes tokens of the translation so far less likely")
    no_repeat_ngram_size: int = Field(0, ge=0, description="no n-gram of this size occurs twice in a translation; 0 allows all")
    max_seconds: Annotated[float, Field(ge=1.0)] | None = Field(
        None,
        description="longer audio is translated in equally long pieces of at most this, which are joined; null takes "
        "data.max_seconds, of evaluate.py's first run too (at least 1 s)",
    )
    max_frames: Count = Field(
        3000, description="frame budget of a decoding batch, padding included; a longer utterance is a batch of its own"
    )
    max_utterances: Count = Field(32, description="most utterances in a decoding batch")
    normaliser: Literal["none", "shared-task", "gmu", "gdps"] = Field(
        "none", description="text normalisation before scoring, see gdps_ds.evaluation.normalisers"
    )
    tokenizer: Literal["auto", "13a", "intl", "char", "zh", "ja-mecab", "ko-mecab", "flores200"] = Field(
        "auto",
        description="BLEU's tokenizer; auto takes sacreBLEU's for each target language, and characters for Thai and such",
    )
    comet_model: Location = Field(
        "Unbabel/wmt22-comet-da", description="COMET's name on the hub, or its model.ckpt (evaluate.py --comet)"
    )
    comet_source: Literal["text", "empty", "transcript"] = Field(
        "text", description="source that COMET reads: the manifest's source_text, nothing, or lines of a file (--transcripts)"
    )
    comet_batch: Count = Field(16, description="utterances in a batch of COMET")
    resamples: Count = Field(1000, description="bootstrap resamples behind intervals and the paired bootstrap")
    trials: Count = Field(10_000, description="trials of approximate randomisation")
    seed: int = Field(12345, ge=0, description="seeds both; sacreBLEU's default")

    @property
    def piece_seconds(self) -> float:
        """``max_seconds`` of settings that know it.

        Raises:
            ValueError: they do not; :meth:`with_pieces_of` tells them.
        """
        if self.max_seconds is None:
            raise ValueError("decode.max_seconds is null, and with_pieces_of has not said what data.max_seconds is")
        return self.max_seconds

    def with_pieces_of(self, longest: float) -> DecodeConfig:
        """These settings with ``longest``, ``data.max_seconds``, as the length of pieces where it is null.

        Which fields were given (``model_fields_set``) stays as it is.
        """
        if self.max_seconds is not None:
            return self
        values = {name: getattr(self, name) for name in DecodeConfig.model_fields} | {"max_seconds": max(float(longest), 1.0)}
        return DecodeConfig.model_construct(_fields_set=set(self.model_fields_set), **values)
