"""Images: what a network is given of them, .npz files and folders of pictures, every fault named in one line."""

import pickle
import struct
import tracemalloc
import zlib
from itertools import product

import numpy as np
import pytest
from PIL import Image

from finite.data.images import Images, class_targets, network_inputs, read_folder, read_npz, scaled
from finite.data.synthetic import DataError
from limits import Problem

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (9, 4, 5, 3), dtype=np.uint8)
LABELS = np.arange(9) % 3
NAMES = ("a", "b", "c")


def images(**changes):
    fields = {"train_images": PIXELS[:6], "train_labels": LABELS[:6], "test_images": PIXELS[6:], "test_labels": LABELS[6:]}
    return Images(**(fields | {"classes": NAMES} | changes))


def test_inputs_are_normalised_as_in_the_paper_and_in_the_order_of_the_pixels():
    x = network_inputs(PIXELS)
    assert (x.shape, x.dtype) == ((9, 60), np.float64)
    np.testing.assert_allclose(x.reshape(9, 4, 5, 3)[7, 2, 3], (PIXELS[7, 2, 3] / 255 - 0.5) / 0.5, rtol=1e-14, atol=1e-15)
    np.testing.assert_array_equal(network_inputs(np.array([0, 255], np.uint8).reshape(1, 1, 2, 1)), [[-1, 1]])


def test_targets_are_one_hot_and_for_mse_centred():
    one_hot = class_targets(LABELS, 3, "cross_entropy")
    np.testing.assert_array_equal(one_hot.argmax(axis=1), LABELS)
    np.testing.assert_array_equal(np.sort(one_hot, axis=1), np.tile([0, 0, 1], (9, 1)))
    centred = class_targets(LABELS, 3, "mse")
    np.testing.assert_allclose(centred.sum(axis=1), 0, atol=1e-15)
    np.testing.assert_allclose(one_hot - centred, 1 / 3)


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_a_problem_takes_both_halves(loss):
    for x, y in (images().train(loss), images().test(loss)):
        problem = Problem(inputs=x, targets=y, loss=loss)
        assert (problem.num_inputs, problem.num_outputs) == (60, 3)


def test_all_samples_come_in_order_and_some_are_drawn_without_repetition():
    x, y = images().train("cross_entropy")
    np.testing.assert_array_equal(x, network_inputs(PIXELS[:6]))
    np.testing.assert_array_equal(y.argmax(axis=1), LABELS[:6])
    for seed in range(5):
        assert len(np.unique(images().train(samples=6, seed=seed)[0], axis=0)) == 6
    drawn, targets = images().train("cross_entropy", samples=5, seed=1)
    origin = [int(np.flatnonzero((x == row).all(axis=1))[0]) for row in drawn]
    np.testing.assert_array_equal(targets.argmax(axis=1), LABELS[origin])
    np.testing.assert_array_equal(images().train(samples=3, seed=1)[0], drawn[:3])
    assert not np.array_equal(images().train(samples=5, seed=2)[0], drawn)


@pytest.mark.parametrize(
    ("ask", "line"),
    [
        (lambda: images().train("hinge"), "unknown loss 'hinge'"),
        (lambda: images().train(samples=7), "7 samples: there are from 1 to 6 training images"),
        (lambda: images().test(samples=0), "0 samples: there are from 1 to 3 test images"),
        (lambda: images(test_images=PIXELS[:0], test_labels=LABELS[:0]).test(), "no test images"),
        (lambda: images(train_images=PIXELS[:0], train_labels=LABELS[:0]), "no training images"),
        (lambda: images(test_images=PIXELS[6:, 1:]), r"test images of shape \(3, 5, 3\), wanted \(4, 5, 3\)"),
        (lambda: images(train_labels=LABELS[:5]), "6 training images but 5 labels"),
        (lambda: images(test_labels=LABELS[6:] + 1), "a test label is 3, wanted 0 to 2"),
        (lambda: images(train_labels=0 * LABELS[:6], test_labels=0 * LABELS[6:], classes=("a",)).train(),
         "all images are of one class, a"),
        (lambda: images(train_labels=LABELS[:6] - 1), "a training label is -1, wanted 0 to 2"),
    ],
)
def test_what_does_not_fit_is_refused(ask, line):
    with pytest.raises(ValueError, match=line) as caught:
        ask()
    assert "\n" not in str(caught.value)


def test_normalising_makes_one_copy():
    """Eight bytes for every one, and no second array of that size."""
    many = np.zeros((200, 32, 32, 3), np.uint8)
    tracemalloc.start()
    network_inputs(many)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.2 * 8 * many.size


ARRAYS = {"train_images": PIXELS[:6], "train_labels": LABELS[:6], "test_images": PIXELS[6:], "test_labels": LABELS[6:]}


def test_an_npz_file_comes_back(tmp_path):
    np.savez(tmp_path / "a.npz", **ARRAYS, classes=np.array(NAMES), val_images=PIXELS)
    found = read_npz(str(tmp_path / "a.npz"))
    for name, values in ARRAYS.items():
        np.testing.assert_array_equal(getattr(found, name), values)
    assert found.classes == NAMES


def test_labels_from_one_and_reals_in_place_of_bytes(tmp_path):
    """Labels 1 … C have no empty class 0; reals have more digits than bytes, and keep them."""
    reals = PIXELS / 255 * 0.999
    np.savez(tmp_path / "a.npz", train_images=reals, train_labels=LABELS + 1, test_images=PIXELS, test_labels=LABELS + 1)
    found = read_npz(tmp_path / "a.npz")
    assert found.classes == ("1", "2", "3")
    np.testing.assert_array_equal(found.train_labels, LABELS)
    np.testing.assert_array_equal(found.test_labels, LABELS)
    np.testing.assert_allclose(found.train()[0], 2 * reals.reshape(9, -1) - 1, atol=1e-15)
    np.testing.assert_array_equal(found.test()[0], network_inputs(PIXELS))
    two = np.where(LABELS > 0, 1, -1)
    np.savez(tmp_path / "c.npz", train_images=PIXELS, train_labels=two)
    of_two = read_npz(tmp_path / "c.npz")
    assert (of_two.classes, of_two.train_labels.tolist()) == (("-1", "1"), (LABELS > 0).astype(int).tolist())
    np.savez(tmp_path / "b.npz", train_images=PIXELS, train_labels=LABELS + 1, classes=np.array(NAMES))
    named = read_npz(tmp_path / "b.npz")
    assert (named.classes, named.train_labels.tolist()) == (NAMES, LABELS.tolist())


def test_grey_images_and_columns_of_labels_and_no_test_set_and_no_names(tmp_path):
    np.savez(tmp_path / "a.npz", train_images=PIXELS[..., 0], train_labels=LABELS[:, None].astype(np.uint8))
    found = read_npz(tmp_path / "a.npz")
    assert (found.train_images.shape, found.test_images.shape) == ((9, 4, 5, 1), (0, 4, 5, 1))
    np.testing.assert_array_equal(found.train_labels, LABELS)
    assert found.classes == ("0", "1", "2")


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"train_images": PIXELS[:6] / 1.0}, r"train_images go over 0 … 255; wanted .* or reals from 0 to 1"),
        ({"train_images": PIXELS[:6].astype(int) + 1}, "train_images go over 1 … 256; wanted integers from 0 to 255"),
        ({"train_images": np.where(PIXELS[:6] == 7, np.nan, PIXELS[:6] / 255)}, "train_images go over nan … nan"),
        ({"train_images": PIXELS[:6] > 100}, "train_images hold bool, wanted integers or reals"),
        ({"train_images": PIXELS[:6].reshape(6, -1)}, r"train_images of shape \(6, 60\), wanted \(n, H, W\)"),
        ({"test_images": np.moveaxis(PIXELS[6:], -1, 1)}, r"test_images of shape \(3, 3, 4, 5\)"),
        ({"train_labels": LABELS[:6] * 1.0}, "train_labels hold float64, wanted integers"),
        ({"train_labels": np.eye(3, dtype=int)[LABELS[:6]]}, r"train_labels of shape \(6, 3\)"),
        ({"train_labels": np.array(3)}, r"train_labels of shape \(\), wanted one label per image"),
        ({"train_labels": LABELS[:5]}, "6 training images but 5 labels"),
        ({"train_labels": np.array([0, 1, 2, 0, 1, 10**12])}, r"labels 0, 1, 2, 1000000000000: wanted classes numbered"),
        ({"train_labels": np.array([0, 1, 3, 0, 1, 3])}, "labels 0, 1, 3: wanted .* from 0 or from 1, none left out"),
        ({"train_labels": np.arange(6) * 2}, "labels 0, 2, 4, 6, … 10: wanted"),
        ({"train_labels": np.array([0, 1, 2, 0, 1, 2**63], np.uint64)}, "labels -9223372036854775808, 0, 1, 2: wanted"),
        ({"test_labels": np.array([0, 1, 3])}, "a test label is 3, wanted 0 to 2"),
        ({"test_labels": None}, "come together"),
        ({"train_labels": None}, "no array train_labels; it has train_images"),
        ({"classes": np.array(["a", "b"])}, "a training label is 2, wanted 0 or 1"),
        ({"train_labels": np.array([-1, 1] * 3), "test_labels": np.array([-1, 0, 1])}, "a test label is 0, wanted -1 or 1"),
        ({"train_labels": LABELS[:6] + 1, "test_labels": LABELS[6:]}, "a test label is 0, wanted 1 to 3"),
        ({"classes": np.array([1, 2, 3])}, "classes hold int64, wanted a list of texts"),
        ({"classes": np.array("abc")}, "classes hold <U3, wanted a list of texts"),
        ({"train_labels": np.array([{}, 1], dtype=object)}, "pickled objects"),
    ],
)
def test_faulty_npz_files_are_named_in_one_line(changes, line, tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, **{name: values for name, values in (ARRAYS | changes).items() if values is not None})
    with pytest.raises(DataError, match=line) as caught:
        read_npz(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def put(folder, name, pixels, **options):
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(folder / name, **options)


@pytest.fixture
def pictures(tmp_path):
    """Three classes, PNG, one picture of the first deeper within its folder."""
    for pixels, label, name in zip(PIXELS, LABELS, "123456789", strict=True):
        put(tmp_path / NAMES[label] / ("deeper" if name == "1" else ""), f"{name}.png", pixels)
    return tmp_path


def test_a_folder_of_pictures_comes_back_by_class_and_name(pictures):
    (pictures / "a" / "notes.txt").write_text("not a picture")
    (pictures / "a" / "._7.png").write_bytes(b"what a file browser leaves")
    (pictures / ".hidden").mkdir()
    found = read_folder(str(pictures))
    np.testing.assert_array_equal(found.train_labels, [0, 0, 0, 1, 1, 1, 2, 2, 2])
    np.testing.assert_array_equal(found.train_images, PIXELS[[3, 6, 0, 1, 4, 7, 2, 5, 8]])
    assert found.classes == NAMES
    assert found.test_images.shape == (0, 4, 5, 3)


def test_folders_train_and_test_are_the_two_halves(tmp_path):
    for half, chosen in (("train", range(6)), ("test", range(6, 9))):
        for k in chosen:
            put(tmp_path / half / NAMES[LABELS[k]], f"{k}.png", PIXELS[k])
    found = read_folder(tmp_path)
    np.testing.assert_array_equal(found.train_images, PIXELS[[0, 3, 1, 4, 2, 5]])
    np.testing.assert_array_equal(found.test_images, PIXELS[6:])
    np.testing.assert_array_equal(found.test_labels, [0, 1, 2])


def test_with_a_size_the_central_square_is_scaled(tmp_path):
    """A white square in the middle of a wide black picture, and the same in a tall one."""
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 255
    put(tmp_path / "x", "wide.png", wide)
    put(tmp_path / "x", "tall.png", wide.transpose(1, 0, 2))
    found = read_folder(tmp_path, size=10)
    np.testing.assert_array_equal(found.train_images, np.full((2, 10, 10, 3), 255))


def test_pixels_of_another_size_are_means_of_what_they_cover():
    """Of three pixels two: the second has a half of the middle one; what lies outside the square is not seen."""
    image = np.array([[9, 0, 6, 12, 9]] * 3, float).reshape(1, -1)
    found, shape = scaled(image, (3, 5, 1), 2)
    assert shape == (2, 2, 1)
    np.testing.assert_allclose(found, [[2, 10, 2, 10]])
    random = np.random.default_rng(0).normal(size=(4, 192))
    np.testing.assert_allclose(scaled(random, (8, 8, 3), 8)[0], random, atol=1e-12)
    np.testing.assert_allclose(scaled(random, (8, 8, 3), 1)[0], random.reshape(4, 64, 3).mean(1), atol=1e-12)
    for size in (0, 9):
        with pytest.raises(ValueError, match=f"image size {size}: wanted 1 to 8, the images are 8×8"):
            scaled(random, (8, 8, 3), size)


def test_grey_palette_and_jpeg_pictures_become_colour(tmp_path):
    put(tmp_path / "x", "1.png", PIXELS[0, ..., 0])
    put(tmp_path / "x", "2.JPG", np.full((4, 5, 3), 100, np.uint8), format="JPEG")
    palette = Image.new("P", (5, 4), color=1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.save(tmp_path / "x" / "3.png")
    found = read_folder(tmp_path)
    np.testing.assert_array_equal(found.train_images[0], np.repeat(PIXELS[0, ..., :1], 3, axis=-1))
    np.testing.assert_allclose(found.train_images[1].astype(int), 100, atol=1)
    np.testing.assert_array_equal(found.train_images[2], np.broadcast_to([10, 20, 30], (4, 5, 3)))


def test_pictures_stand_upright(tmp_path):
    """A camera that was turned says so: orientation 6 is a quarter turn clockwise to show it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    put(tmp_path / "x", "1.png", PIXELS[0], exif=exif)
    np.testing.assert_array_equal(read_folder(tmp_path).train_images[0], np.rot90(PIXELS[0], -1))


def test_too_many_classes_are_refused_before_they_are_written_out():
    labels = np.arange(10**6)  # numbers to be learned, say, which a file calls labels
    with pytest.raises(MemoryError, match=r"^1000000 labels of 1000000 classes need about [0-9.]+ GiB, more than the"):
        class_targets(labels, len(labels), "mse")


def deep_png(pixels, transparent=()):
    """A PNG of 16 bits (H, W, channels), written by hand: Pillow writes no colours of that depth.  One may be transparent."""
    height, width, channels = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    hidden = chunk(b"tRNS", np.array(transparent, ">u2").tobytes()) if len(transparent) else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + hidden + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


DEEP = RNG.integers(0, 65536, (4, 5, 4)).astype(np.uint16)


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_become_the_nearest_eight(channels, tmp_path):
    """Cut off, half of them would be one too small."""
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "1.png").write_bytes(deep_png(DEEP[..., :channels]))
    expected = np.broadcast_to(np.round(DEEP[..., :channels] / 257), (4, 5, 3))
    np.testing.assert_array_equal(read_folder(tmp_path).train_images[0], expected)
    assert (expected != DEEP[..., :channels] >> 8).any()


@pytest.mark.parametrize("channels", [1, 3])
def test_of_sixteen_bits_one_colour_may_be_transparent(channels, tmp_path):
    """And not its neighbours, which are rounded to the same."""
    pixels = DEEP[..., :channels].copy()
    pixels[1, 1], pixels[1, 2] = 1000, 1001
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "1.png").write_bytes(deep_png(pixels, pixels[1, 1]))
    expected = np.array(np.broadcast_to(np.round(pixels / 257), (4, 5, 3)))
    expected[1, 1] = 255
    np.testing.assert_array_equal(read_folder(tmp_path).train_images[0], expected)


@pytest.mark.parametrize("outer", [("training_set", "test_set"), ("train_images", "val_images"), ("cat", "dog")])
def test_what_looks_like_splits_is_no_class(outer, tmp_path):
    inner = ("train", "val") if "cat" in outer else NAMES[:2]
    for part, name in product(outer, inner):
        put(tmp_path / part / name, "1.png", PIXELS[0])
    with pytest.raises(ValueError, match=r"hold no pictures, but folders \w+, \w+ each: wanted splits \(train, val, test\)"):
        read_folder(tmp_path)


def test_what_is_transparent_shows_white_and_not_its_hidden_colour(tmp_path):
    hidden = np.concatenate([PIXELS[0], np.zeros((4, 5, 1), np.uint8)], axis=-1)
    hidden[0, 0, 3], hidden[1, 1] = 255, (0, 100, 200, 51)
    put(tmp_path / "x", "1.png", hidden)
    put(tmp_path / "x", "2.webp", hidden, lossless=True, exact=True)
    palette = Image.fromarray(PIXELS[0, ..., 0]).convert("P")
    palette.save(tmp_path / "x" / "3.png", transparency=int(np.asarray(palette)[2, 2]))
    (tmp_path / "x" / "4.png").write_bytes(deep_png(hidden.astype(np.uint16) * 257))
    found = read_folder(tmp_path).train_images
    expected = np.full((4, 5, 3), 255)
    expected[0, 0], expected[1, 1] = PIXELS[0, 0, 0], 0.8 * 255 + 0.2 * np.array([0, 100, 200])
    for place in (0, 1, 3):
        np.testing.assert_array_equal(found[place], expected)
    assert (found[2, 2, 2] == 255).all()


@pytest.mark.parametrize("ending", ["webp", "bmp", "tiff", "ppm", "PNG"])
def test_every_format_without_loss_is_read(ending, tmp_path):
    put(tmp_path / "x", f"1.{ending}", PIXELS[0], **{"lossless": True} if ending == "webp" else {})
    np.testing.assert_array_equal(read_folder(tmp_path).train_images[0], PIXELS[0])


def test_what_is_passed_over_is_named(tmp_path, caplog):
    for part, name in product(("Train", "validation", "test"), NAMES):
        put(tmp_path / part / name, "1.png", PIXELS[ord(name) % 9])
    for path in (tmp_path / "readme.md", tmp_path / "Train" / "a" / "2.raw", tmp_path / "Train" / "a" / ".hidden"):
        path.write_text("no picture")
    with caplog.at_level("INFO", "finite"):
        found = read_folder(tmp_path)
    assert (len(found.train_images), len(found.test_images), found.classes) == (3, 3, NAMES)
    assert caplog.messages == [f"{tmp_path}: passed over validation, for there is test",
                               f"{tmp_path}: passed over readme.md, no pictures of a class",
                               f"{tmp_path / 'Train' / 'a'}: passed over 2.raw, no pictures of a class"]  # fmt: skip


@pytest.mark.parametrize("beside", [(), ("val",), ("valid", "test")])
def test_the_training_images_are_those_of_train(beside, tmp_path):
    """Its subfolders are the classes, whatever lies beside it; a test set without classes has no labels."""
    for place, part in enumerate(("train", *beside)):
        for name in NAMES[:2]:
            put(tmp_path / part / name, f"{place}.png", PIXELS[place])
    put(tmp_path / "test" / "a" if "test" in beside else tmp_path / "test", "9.png", PIXELS[5])
    found = read_folder(tmp_path)
    np.testing.assert_array_equal(found.train_images, [PIXELS[0], PIXELS[0]])
    assert (found.classes, found.train_labels.tolist()) == (("a", "b"), [0, 1])
    tested = {(): [], ("val",): [1, 1], ("valid", "test"): [2, 5, 2]}[beside]
    assert [PIXELS.tolist().index(image.tolist()) for image in found.test_images] == tested


def cut(path):
    path.write_bytes(path.read_bytes()[:-30])


def flip(path):
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 6] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (cut, "cannot be read as a PNG picture"),
        (flip, "cannot be read as a PNG picture"),
        (lambda path: path.write_bytes(b""), "cannot be read"),
        (lambda path: path.write_bytes(b"GIF89a" + bytes(20)), "cannot be read"),
        (lambda path: path.write_bytes(pickle.dumps(PIXELS)), "cannot be read"),
        (lambda path: Image.fromarray(PIXELS[0]).save(path, format="JPEG2000"), "cannot be read"),
        (lambda path: Image.fromarray(PIXELS[0, ..., 0] / np.float32(255)).save(path, format="TIFF"), "reals; wanted 8 or 16"),
        (lambda path: path.write_bytes(deep_png(DEEP[..., :2])), "16 bits per pixel and channel, laid out as LA;16B"),
        (lambda path: Image.fromarray(PIXELS[0]).save(
            path, format="GIF", save_all=True, append_images=[Image.fromarray(PIXELS[1])]), "2 pictures in one file"),
        (lambda path: Image.fromarray(PIXELS[0, 1:]).save(path), r"5×3 pixels, 4\.png has 5×4; with a size given"),
    ],
)
def test_faulty_pictures_are_named_in_one_line(damage, line, pictures):
    path = pictures / "b" / "5.png"
    damage(path)
    with pytest.raises(DataError, match=line) as caught:
        read_folder(pictures)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda root: None, "no subfolders, wanted one per class"),
        (lambda root: (root / "cats").mkdir(), "cats: no pictures, wanted files that end in .png, .jpg, .jpeg, .webp"),
        (lambda root: put(root / "train", "1.png", PIXELS[0]), "train: no subfolders, wanted one per class"),
        (lambda root: [(root / name / "cats").mkdir(parents=True) for name in ("train", "test", "dogs", "cats")],
         "train, test beside cats, dogs: wanted either splits .train, val, test.*, or a subfolder per class"),
        (lambda root: [(root / name / "cats").mkdir(parents=True) for name in ("val", "test")],
         "val, test: wanted one folder train, and at most one val and one test"),
        (lambda root: [(root / name / "cats").mkdir(parents=True) for name in ("train", "valid", "validation")],
         "train, valid, validation: wanted one folder train"),
        (lambda root: [(root / half / name).mkdir(parents=True) for half, name in (("train", "cats"), ("test", "dogs"))],
         "its subfolders are not those of"),
    ],
)  # fmt: skip
def test_folders_without_classes_or_pictures_are_named(make, line, tmp_path):
    make(tmp_path)
    with pytest.raises(DataError, match=line):
        read_folder(tmp_path)


def test_no_such_folder_and_no_such_size(tmp_path):
    with pytest.raises(DataError, match="absent: no such folder"):
        read_folder(tmp_path / "absent")
    with pytest.raises(ValueError, match="image size 0 must be at least 1"):
        read_folder(tmp_path, size=0)
