"""The forms in which text encoders' tokenizers look at a text, beyond the composed form (NFC) that every prompt has."""

from __future__ import annotations

import re
import unicodedata

# What sentencepiece's nmt_nfkc takes for a space besides what NFKC makes one, and the control characters it drops.
_T5_SPACES = "\t\n\f\r\u1680\u200b-\u200f\u2028\u2029\u2581\ufeff\ufffd"
_T5_SPACE = re.compile(f"[ {_T5_SPACES}]+")
_T5_DROPPED = re.compile("[\x01-\x08\x0b\x0e-\x1f\x7f\x8f\x9f]")


def clip_form(text: str) -> str:
    """Return a text in lower case with runs of whitespace made one space, as CLIP's own tokenizer begins.

    Source: Radford et al., "CLIP", ``simple_tokenizer.py``: ``whitespace_clean`` and ``lower``.
    """
    return re.sub(r"\s+", " ", text).lower()


def t5_form(text: str) -> str:
    """Return a text as T5's sentencepiece model normalises it, by the rule nmt_nfkc.

    Source: sentencepiece, ``doc/normalization.md``: NFKC "with some additional normalization around spaces".
    """
    text = unicodedata.normalize("NFKC", _T5_DROPPED.sub("", text))
    return _T5_SPACE.sub(" ", text)


FORMS = {"clip": clip_form, "t5": t5_form}
"""Form by the name that the native side asks for."""
