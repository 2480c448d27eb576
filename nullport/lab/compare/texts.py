"""Tasks of language: a text to be predicted, token by token."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nullport.lab.compare.files import Source, read_text
from nullport.lab.compare.task import Array, Batch, Task

CONTEXT = 64
"""Characters or words that a language model sees at once."""

WORDS = 2000
"""Words that the vocabulary of words has, besides the one that stands for all others."""

SHAKESPEARE = Source(
    "tinyshakespeare",
    ("input.txt.gz",),
    "  curl -L https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/"
    "input.txt | gzip > input.txt.gz",
)


def shakespeare(data: str | Path | None = None) -> Task:
    """Characters of Shakespeare's plays, to be predicted one by one; the last tenth validates."""
    text = np.array(list(read_text(*SHAKESPEARE.find(data))))
    letters, codes = np.unique(text, return_inverse=True)
    x, y = _spans(codes)
    cut = len(x) * 9 // 10
    return Task("shakespeare", "language", len(letters), x[:cut], y[:cut], x[cut:], y[cut:])


WIKITEXT = Source(
    "wikitext2_valid_test",
    ("valid.txt.gz", "test.txt.gz"),
    "  for f in valid test; do curl -L https://raw.githubusercontent.com/pytorch/examples/main/"
    "word_language_model/data/wikitext-2/$f.txt | gzip > $f.txt.gz; done",
)


def wikitext(data: str | Path | None = None) -> Task:
    """Words of Wikipedia: the validation part of WikiText-2 to train on, its test part to validate.

    The ``WORDS`` most frequent words have a number of their own, all others share one.
    """
    train, valid = (
        np.array(read_text(path).replace("\n", " <eos> ").split()) for path in WIKITEXT.find(data)
    )
    words, counts = np.unique(train, return_counts=True)
    known = np.sort(words[np.argsort(-counts, kind="stable")[:WORDS]])

    def codes(text: Array) -> Array:
        place = np.minimum(np.searchsorted(known, text), len(known) - 1)
        return np.where(known[place] == text, place, len(known))

    return Task(
        "wikitext", "language", len(known) + 1, *_spans(codes(train)), *_spans(codes(valid))
    )


def _spans(codes: Array) -> Batch:
    """Cut a text of numbers (length,) into inputs and next tokens, (n, CONTEXT) int64 each."""
    count = (len(codes) - 1) // CONTEXT
    x, y = (codes[i : i + count * CONTEXT].reshape(count, CONTEXT) for i in (0, 1))
    return x.astype(np.int64), y.astype(np.int64)
