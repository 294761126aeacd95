"""What a user gets who has an export and ``transformers``, and has heard of no option."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import soundfile
from transformers import AutoProcessor, SeamlessM4TForSpeechToText

from gdps_ds.data.manifest import Utterance


def translated(folder: Path, utterances: Iterable[Utterance]) -> dict[str, str]:
    """Id -> translation of each utterance, which is a whole file at 16 kHz."""
    model, processor = SeamlessM4TForSpeechToText.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    texts = {}
    for each in utterances:
        samples, rate = soundfile.read(each.audio, dtype="float32")
        inputs = processor(audio=samples, sampling_rate=rate, return_tensors="pt")
        ids = model.generate(**inputs, tgt_lang=each.target_lang)
        (texts[each.id],) = processor.batch_decode(ids, skip_special_tokens=True)
    return texts
