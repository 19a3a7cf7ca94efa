"""The options that the commands share: their data, one configuration, batches by the seed."""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from comparisons import options as runs
from comparisons import results
from comparisons.convergence import study as convergence
from comparisons.coord_check import study as coord_check
from comparisons.landscape import study as landscape
from comparisons.transfer import study as transfer


@dataclass(frozen=True)
class Options(runs.DataOptions):
    widths: tuple[int, ...] = (8, 16)
    out: Path | None = None


def configured(options):
    return runs.config(options, *options.load())


@pytest.mark.parametrize("options", [convergence.Options, coord_check.Options, landscape.Options, transfer.Options])
def test_data_that_the_precision_cannot_hold_and_that_say_nothing_are_refused(options, tmp_path):
    np.savez(tmp_path / "large.npz", inputs=np.full((4, 3), 1e39), targets=np.ones((4, 1)))
    given = options(data=str(tmp_path / "large.npz"), model="mlp")
    with pytest.raises(ValueError, match=r"inputs reach 1e\+39: beyond float32; take float64, or scale them"):
        given.load()
    assert replace(given, precision="float64").load()[0].max() == 1e39
    np.savez(tmp_path / "large.npz", inputs=np.zeros((4, 3)), targets=np.ones((4, 1)))
    with pytest.raises(ValueError, match=r"all inputs of .* are zero"):
        given.load()


def test_a_configuration_is_what_json_gives_back_and_has_all_but_the_folder():
    config = configured(Options(samples=6, dry_run=True, out=Path("elsewhere")))
    assert json.loads(json.dumps(config)) == config
    assert set(config) == {"widths", "data", "samples", "inputs", "outputs", "loss", "seed", "data_sha256"}
    assert configured(Options(samples=6)) == config


def test_the_digest_depends_on_every_option_and_on_the_data_but_not_on_their_order():
    options = Options(samples=6)
    config = configured(options)
    other_file = runs.config(options, *(2 * values for values in options.load()))
    others = [configured(replace(options, **change)) for change in ({"seed": 1}, {"samples": 7}, {"widths": (16, 8)})]
    assert len({results.digest(one) for one in (config, other_file, *others)}) == 5
    assert results.digest(dict(reversed(config.items()))) == results.digest(config)


def test_batches_follow_the_seed():
    assert runs.batches(0, 8, None, 5) is None
    assert runs.batches(0, 8, 4, 5).shape == (5, 4)
    assert runs.batches(0, 8, 4, -1).shape == (0, 4)
    np.testing.assert_array_equal(runs.batches(3, 8, 4, 5), runs.batches(3, 8, 4, 5))
    assert (runs.batches(3, 8, 4, 5) != runs.batches(4, 8, 4, 5)).any()


def test_what_a_home_is_written_out_for(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    options = Options(data="~/mine.txt", out=Path("~/there")).adapted()
    assert (options.data, options.out) == (f"{tmp_path}/mine.txt", tmp_path / "there")
    assert Options(data="mine~.txt").adapted().data == "mine~.txt"


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"samples": 2**31}, "samples 2147483648: wanted a number below 2^31"),
        ({"widths": (8, 2**32)}, "widths 4294967296: wanted"),
        ({"image_size": 0}, "image-size 0: gaussian is taken as it is"),
    ],
)
def test_numbers_too_large_and_options_without_effect_are_refused(given, line):
    with pytest.raises(ValueError, match=re.escape(line)):
        Options(**given).adapted()


def test_the_users_own_arrays(tmp_path):
    """Labels from 1 are classes under both losses, some are drawn, images keep their shape; small letters or capitals."""
    images, labels = np.arange(72, dtype=np.uint8).reshape(6, 3, 4), np.arange(6) % 3 + 1
    np.savez(tmp_path / "a.npz", inputs=images, targets=labels)
    (tmp_path / "a.npz").rename(tmp_path / "A.NPZ")
    for loss in ("mse", "cross_entropy"):
        inputs, targets, shape = Options(data=str(tmp_path / "A.NPZ"), samples=5, loss=loss).load_shaped()
        assert (inputs.shape, targets.shape, shape) == ((5, 12), (5, 3), (3, 4, 1))
        row = ((inputs[:, 0] + 1) * 127.5).round().astype(int) // 12
        np.testing.assert_array_equal(targets.argmax(axis=1), row % 3)
    with pytest.raises(ValueError, match=r"2 outputs: .*A\.NPZ has 3"):
        Options(data=str(tmp_path / "A.NPZ"), outputs=2).load()


def test_values_that_are_distinct_and_positive():
    runs.check_distinct("names", ("a",), 1)
    runs.check_distinct("rates", (0.1, 1.0), 2)
    with pytest.raises(ValueError, match=r"^names none: wanted at least 1, positive, none twice$"):
        runs.check_distinct("names", (), 1)


@pytest.fixture
def pictures(tmp_path):
    """An .npz file of twelve 4×4 colour images of three classes."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(256, size=(12, 4, 4, 3), dtype=np.uint8), np.arange(12) % 3
    np.savez(tmp_path / "pictures.npz", train_images=images, train_labels=labels)
    return tmp_path / "pictures.npz"


def test_images_of_a_file_are_classes(pictures):
    inputs, targets = Options(data=str(pictures), samples=9, loss="cross_entropy").load()
    assert (inputs.shape, targets.shape) == ((9, 48), (9, 3))
    assert (np.sort(targets, axis=1) == [0, 0, 1]).all()
    centred = Options(data=str(pictures), samples=9).load()[1]
    np.testing.assert_allclose(centred, targets - 1 / 3)
    with pytest.raises(ValueError, match=r"7 inputs: .*pictures\.npz has 48"):
        Options(data=str(pictures), inputs=7).load()


def test_images_keep_their_shape(tmp_path):
    """3:4 in colour has as many numbers as a square in grey."""
    images = np.random.default_rng(0).integers(256, size=(8, 6, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "all.npz", train_images=images, train_labels=np.arange(8) % 2)
    for place, picture in enumerate(images):
        (tmp_path / "folder" / "ab"[place % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(tmp_path / "folder" / "ab"[place % 2] / f"{place}.png")
    for data in ("all.npz", "folder"):
        problem = landscape.prepare(landscape.Options(data=str(tmp_path / data), batch_size=4)).problems["mup", 2]
        assert problem.image == (6, 8, 3)
    labels = Options(data=str(tmp_path / "folder")).load()[1].argmax(axis=1)
    assert sorted(labels) != labels.tolist()  # a folder's first pictures are of one class
    assert Options(data=str(tmp_path / "folder"), image_size=4).load_shaped()[2] == (4, 4, 3)
    inputs, _, shape = Options(data=str(tmp_path / "all.npz"), image_size=3, samples=8).load_shaped()
    assert shape == (3, 3, 3)
    halves = images[:, :, 1:7].reshape(8, 3, 2, 3, 2, 3).mean(axis=(2, 4)).reshape(8, -1) / 127.5 - 1
    np.testing.assert_allclose(np.sort(inputs, 0), np.sort(halves, 0), atol=1e-12)
    np.savez(tmp_path / "rows.npz", inputs=np.eye(3), targets=np.ones(3))
    with pytest.raises(ValueError, match=r"image size 4: .*rows\.npz has no images, or does not say their shape"):
        Options(data=str(tmp_path / "rows.npz"), image_size=4).load()


def test_embedded_photographs_are_classes():
    inputs, targets = Options(data="patches10", samples=20).load()
    np.testing.assert_array_equal(targets.argmax(axis=1), np.arange(20) % 10)  # as they are drawn
    assert (inputs.shape, targets.shape) == ((20, 3072), (20, 10))
    assert Options(data="patches10", samples=20, loss="cross_entropy").load()[1].max() == 1.0


@pytest.mark.parametrize(("data", "classes"), [("gaussian", 3), ("digits", 4)])
def test_cross_entropy_makes_classes_of_targets(data, classes):
    usual, one_hot = (Options(data=data, samples=12, outputs=classes, loss=loss).load()[1] for loss in ("mse", "cross_entropy"))
    assert Options(data=data, loss="cross_entropy").load()[1].shape[1] == 10
    assert (one_hot.argmax(axis=1) == usual.argmax(axis=1)).all()
    assert (np.sort(one_hot, axis=1)[:, -2:] == [0, 1]).all()


def test_the_character_behind_a_stretch_of_text(tmp_path):
    file = tmp_path / "mine.TXT"
    file.write_text("abcabcabc" * 20)
    tokens, targets = Options(data=str(file), samples=9, inputs=4, loss="cross_entropy").load()
    assert tokens.shape == (9, 4)
    np.testing.assert_array_equal(targets.argmax(1), (tokens[:, -1] + 1) % 3)
    np.testing.assert_array_equal(targets.sum(1), 1)
    tokens, targets = Options(data="plays").load()
    assert (tokens.shape, targets.shape) == ((256, 16), (256, 65))
    np.testing.assert_allclose(targets.sum(1), 0, atol=1e-12)
    with pytest.raises(ValueError, match=r"4 outputs: \S+ has 3"):
        Options(data=str(file), outputs=4, samples=9).load()
    with pytest.raises(ValueError, match="No such file"):
        Options(data=str(tmp_path / "other.txt")).load()
