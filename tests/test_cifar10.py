"""CIFAR-10's binary version: made-up files of seven records each are read as they were written, faulty ones are named."""

import gzip
import io
import pickle
import tarfile
import tracemalloc

import numpy as np
import pytest

from finite.data import cifar10 as module
from finite.data.cifar10 import CLASSES, FILES, cifar10
from finite.data.synthetic import DataError

INNER = "cifar-10-batches-bin"


@pytest.fixture(autouse=True)
def _seven_records_per_file(monkeypatch):
    monkeypatch.setattr(module, "RECORDS", 7)


def record(label, image):
    """Written out as the format says: the label, then all red, all green and all blue pixels, row by row."""
    planes = [image[row, column, colour] for colour in range(3) for row in range(32) for column in range(32)]
    return bytes([label, *planes])


RNG = np.random.default_rng(1)
PIXELS = RNG.integers(0, 256, (42, 32, 32, 3), dtype=np.uint8)
LABELS = RNG.integers(0, 10, 42)
RECORDS = [record(label, image) for label, image in zip(LABELS, PIXELS, strict=True)]
CONTENTS = {name: b"".join(RECORDS[7 * k : 7 * k + 7]) for k, name in enumerate(FILES)}


def write_folder(folder, contents):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return folder


def packed(contents):
    """The bytes of an archive with these files in its inner folder, and what else the real one has."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in ({"batches.meta.txt": b"airplane\n"} | contents).items():
            member = tarfile.TarInfo(f"{INNER}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture(params=["folder", "inner folder", "archive", "archive in another order"])
def source(request, tmp_path):
    if request.param == "folder":
        return write_folder(tmp_path / "anywhere", CONTENTS)
    if request.param == "inner folder":
        return write_folder(tmp_path / INNER, CONTENTS).parent
    ordered = reversed(CONTENTS.items()) if "order" in request.param else CONTENTS.items()
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(packed(dict(ordered)))
    return tmp_path / "cifar-10-binary.tar.gz"


def test_images_and_labels_come_back_as_they_were_written(source):
    images = cifar10(str(source))
    np.testing.assert_array_equal(images.train_images, PIXELS[:35])
    np.testing.assert_array_equal(images.train_labels, LABELS[:35])
    np.testing.assert_array_equal(images.test_images, PIXELS[35:])
    np.testing.assert_array_equal(images.test_labels, LABELS[35:])
    assert images.classes == CLASSES


def test_an_archive_is_not_unpacked_to_disk(tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(packed(CONTENTS))
    cifar10(tmp_path / "a.tar.gz")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.tar.gz"]


def test_the_real_files_have_ten_thousand_records_of_3073_bytes(monkeypatch, tmp_path):
    """The sizes as published, and no more memory than the images and one file at a time: 300 records make it quick."""
    monkeypatch.undo()
    assert module.RECORDS * module.RECORD_BYTES == 30_730_000
    monkeypatch.setattr(module, "RECORDS", 300)
    (tmp_path / "a.tar.gz").write_bytes(packed(dict.fromkeys(FILES, bytes(300 * 3073))))
    tracemalloc.start()
    cifar10(tmp_path / "a.tar.gz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.6 * 6 * 300 * 3073


def changed(name, content):
    return {key: content if key == name else value for key, value in CONTENTS.items() if key != name or content is not None}


WRONG_LABEL = bytes([10]) + CONTENTS["data_batch_3.bin"][1:]
FAULTS = [
    (changed("data_batch_3.bin", CONTENTS["data_batch_3.bin"][:-1]), "data_batch_3.bin has 21510 bytes, wanted 21511: 7"),
    (changed("data_batch_3.bin", CONTENTS["data_batch_3.bin"][3073:]), "data_batch_3.bin has 18438 bytes, wanted 21511"),
    (changed("test_batch.bin", b""), "test_batch.bin has 0 bytes"),
    (changed("data_batch_3.bin", WRONG_LABEL), "data_batch_3.bin has the label 10, wanted 0 to 9"),
    (changed("data_batch_2.bin", None), "no data_batch_2.bin; wanted the six files of CIFAR-10's binary version"),
    ({name.removesuffix(".bin"): pickle.dumps({}) for name in FILES}, "no data_batch_1.bin, .*binary version"),
]


@pytest.mark.parametrize(("contents", "line"), FAULTS, ids=[line for _, line in FAULTS])
@pytest.mark.parametrize("kind", ["folder", "archive"])
def test_faulty_files_are_named_in_one_line(contents, line, kind, tmp_path):
    path = tmp_path / kind
    write_folder(path, contents) if kind == "folder" else path.write_bytes(packed(contents))
    refused(path, line)


def refused(path, line):
    with pytest.raises(DataError, match=line) as caught:
        cifar10(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def wrong_checksum(archive):
    return archive[:-8] + bytes([archive[-8] ^ 1]) + archive[-7:]


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda archive: None, "No such file"),
        (lambda archive: b"", "cannot be read as a .tar.gz archive"),
        (lambda archive: archive[: len(archive) // 2], "cannot be read as a .tar.gz archive"),
        (lambda archive: archive[:-4], "cannot be read as a .tar.gz archive"),
        (wrong_checksum, "cannot be read as a .tar.gz archive: CRC check failed"),
        (lambda archive: archive[:2000] + bytes(50) + archive[2050:], "cannot be read as a .tar.gz archive"),
        (lambda archive: b"BZh9" + archive[4:], "cannot be read as a .tar.gz archive"),
        (lambda archive: pickle.dumps(CONTENTS), "cannot be read as a .tar.gz archive"),
        (lambda archive: gzip.compress(b"text, no archive"), "cannot be read as a .tar.gz archive"),
    ],
)
def test_damaged_archives_are_named_in_one_line(damage, line, tmp_path):
    path = tmp_path / "cifar-10-binary.tar.gz"
    content = damage(packed(CONTENTS))
    if content is not None:
        path.write_bytes(content)
    refused(path, line)


def test_an_empty_folder_is_named(tmp_path):
    refused(tmp_path, "no data_batch_1.bin, data_batch_2.bin")
