"""Tasks of language: a text to be predicted, token by token."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nullport.lab.compare.files import read_text
from nullport.lab.compare.sources import Download, Source, gzipped
from nullport.lab.compare.task import Array, Batch, Task

CONTEXT = 64
"""Characters or words that a language model sees at once."""

WORDS = 2000
"""Words that the vocabulary of words has, besides the one that stands for all others."""

SHAKESPEARE = Source(
    "shakespeare",
    "tinyshakespeare",
    ("input.txt.gz",),
    (
        Download(
            "https://raw.githubusercontent.com/karpathy/char-rnn/"
            "6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/data/tinyshakespeare/input.txt",
            "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
            gzipped("input.txt.gz"),
        ),
    ),
)


def shakespeare(data: str | Path | None = None) -> Task:
    """Characters of Shakespeare's plays, to be predicted one by one; the last tenth validates."""
    text = np.array(list(read_text(*SHAKESPEARE.find(data))))
    letters, codes = np.unique(text, return_inverse=True)
    x, y = _spans(codes)
    cut = len(x) * 9 // 10
    return Task("shakespeare", "language", len(letters), x[:cut], y[:cut], x[cut:], y[cut:])


WIKITEXT = Source(
    "wikitext",
    "wikitext2_valid_test",
    (
        "valid.txt.gz",
        "test.txt.gz",
    ),
    (
        Download(
            "https://raw.githubusercontent.com/pytorch/examples/"
            "77f55b912142e11fcfdf5b530231fb9c52f181e8/word_language_model/data/wikitext-2/valid.txt",
            "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
            gzipped("valid.txt.gz"),
        ),
        Download(
            "https://raw.githubusercontent.com/pytorch/examples/"
            "77f55b912142e11fcfdf5b530231fb9c52f181e8/word_language_model/data/wikitext-2/test.txt",
            "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
            gzipped("test.txt.gz"),
        ),
    ),
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
