"""Texts: every character a token and back, the plays that were published, windows whose targets are the next tokens."""

import numpy as np
import pytest

from finite.data import synthetic as data
from finite.data import text
from finite.data.text import plays, read_text, windows


def test_the_plays_are_those_that_were_put_in():
    lines = plays()
    assert (len(lines.train_tokens), len(lines.test_tokens), len(lines.vocabulary)) == (458_610, 50_958, 65)
    assert text.PLAYS.stat().st_size < 500_000
    train = lines.decode(lines.train_tokens)
    assert train.startswith("Hamlet\n\nACT I\n")
    assert "To be, or not to be: that is the question:\nWhether 'tis nobler in the mind to suffer\n" in train
    assert lines.decode(lines.test_tokens).endswith("Give me your hands, if we be friends,\nAnd Robin shall restore amends.\n")


def test_train_and_test_are_the_beginning_and_the_end_of_every_play():
    lines = plays()
    train, test = lines.decode(lines.train_tokens), lines.decode(lines.test_tokens)
    whole = [play.tobytes().decode() for play in data.embedded(text.PLAYS, text.PLAYS_SHA256).values()]
    assert len(whole) == 4
    for play in whole:
        cut = len(play) * 9 // 10
        assert play[:cut] in train
        assert play[cut:] in test
    assert sum(map(len, whole)) == len(train) + len(test)


def test_frequencies_and_pairs_of_characters_predict_as_documented():
    """Uniform log 65, characters 3.31, pairs 2.50 nats; add-one counts."""
    lines = plays()
    train, test, count = lines.train_tokens, lines.test_tokens, len(lines.vocabulary)
    single = np.bincount(train, minlength=count) + 1.0
    assert -np.log(single[test] / single.sum()).mean() == pytest.approx(3.31, abs=0.005)
    pairs = np.bincount(train[:-1] * count + train[1:], minlength=count**2).reshape(count, count) + 1.0
    given = pairs / pairs.sum(axis=1, keepdims=True)
    assert -np.log(given[test[:-1], test[1:]]).mean() == pytest.approx(2.50, abs=0.005)


def test_a_text_comes_back_and_its_vocabulary_is_sorted(tmp_path):
    written = "Πρόλογος: naïve café — 𝄞!\nzz\n" * 10
    (tmp_path / "a.txt").write_text(written, encoding="utf-8")
    lines = read_text(tmp_path / "a.txt")
    assert lines.vocabulary == "".join(sorted(set(written)))
    assert lines.decode(lines.train_tokens) + lines.decode(lines.test_tokens) == written
    assert len(lines.train_tokens) == len(written) * 9 // 10


def test_a_second_file_is_the_test_text(tmp_path):
    (tmp_path / "wiki.train.tokens").write_text("abcabc", encoding="utf-8")
    (tmp_path / "wiki.valid.tokens").write_bytes("\ufeffcad\r\n".encode())
    lines = read_text(str(tmp_path / "wiki.train.tokens"), test=str(tmp_path / "wiki.valid.tokens"))
    assert lines.vocabulary == "\nabcd"
    np.testing.assert_array_equal(lines.train_tokens, [1, 2, 3, 1, 2, 3])
    np.testing.assert_array_equal(lines.test_tokens, [3, 1, 4, 0])


def test_only_the_first_characters_are_read(tmp_path):
    (tmp_path / "a.txt").write_text("éèàxéyz" * 1000, encoding="utf-8")
    lines = read_text(tmp_path / "a.txt", characters=10)
    assert lines.decode(lines.train_tokens) + lines.decode(lines.test_tokens) == "éèàxéyzéèà"
    assert lines.vocabulary == "xyzàèé"


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (None, "No such file"),
        (b"", "0 characters"),
        (b"x", "1 characters"),
        (b"fine until here \xff\xfe", "not a text in UTF-8: byte 0xff, invalid start byte"),
        ("naïve".encode("latin-1"), "not a text in UTF-8: byte 0xef"),
        ("cut in the middle: é".encode()[:-1], "not a text in UTF-8: byte 0xc3, unexpected end of data"),
    ],
)
def test_faulty_texts_are_named_in_one_line(content, line, tmp_path):
    path = tmp_path / "a.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(data.DataError, match=line) as caught:
        read_text(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_folder_is_no_text(tmp_path):
    with pytest.raises(data.DataError, match="Is a directory"):
        read_text(tmp_path)


def test_targets_are_the_next_tokens():
    tokens = np.arange(100) ** 2
    inputs, targets = windows(tokens, length=7, samples=40, seed=2)
    assert inputs.shape == targets.shape == (40, 7)
    start = np.sqrt(inputs[:, 0]).astype(int)
    np.testing.assert_array_equal(inputs, (start[:, None] + np.arange(7)) ** 2)
    np.testing.assert_array_equal(targets, (start[:, None] + np.arange(1, 8)) ** 2)
    assert len(np.unique(start)) == 40


def test_windows_reach_both_ends_and_depend_on_the_seed_only():
    tokens = np.arange(12)
    inputs, targets = windows(tokens, length=4, samples=8, seed=0)
    np.testing.assert_array_equal(np.sort(inputs[:, 0]), np.arange(8))
    assert targets.max() == 11
    np.testing.assert_array_equal(windows(tokens, 4, 5, seed=1)[0], windows(tokens, 4, 5, seed=1)[0])
    assert not np.array_equal(windows(tokens, 4, 5, seed=1)[0], windows(tokens, 4, 5, seed=2)[0])


@pytest.mark.parametrize(("length", "samples", "line"), [(0, 1, "windows of 0 tokens: the text of 12 has those of 1 to 11"),
                                                         (12, 1, "windows of 12"), (4, 9, "9 windows of 4 .* from 1 to 8"),
                                                         (4, 0, "0 windows")])  # fmt: skip
def test_windows_that_cannot_be(length, samples, line):
    with pytest.raises(ValueError, match=line):
        windows(np.arange(12), length, samples)


def test_one_character_is_too_few(tmp_path):
    with pytest.raises(ValueError, match="1 characters: wanted at least 2"):
        read_text(tmp_path / "absent", characters=1)


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: bytes([b[0] ^ 1]) + b[1:], None])
def test_damaged_plays_are_refused(damage, tmp_path, monkeypatch):
    if damage:
        (tmp_path / "plays.npz").write_bytes(damage(text.PLAYS.read_bytes()))
    monkeypatch.setattr(text, "PLAYS", tmp_path / "plays.npz")
    with pytest.raises(data.DataError, match=r"plays\.npz: .*install this package anew"):
        plays()
