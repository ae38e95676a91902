"""Data sets: the embedded one, prepared ones where they are at hand, and everything that can be
wrong with a folder.
"""

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import metajax as mx
from metajax.data import _prepared as data_module

TFDS = os.environ.get("TFDS_DATA_DIR")


def needs(name):
    there = TFDS is not None and (Path(TFDS) / name).is_dir()
    return pytest.mark.skipif(
        not there,
        reason=f"{name} is not prepared: set TFDS_DATA_DIR to a tfds directory that has it",
    )


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data_module._load_prepared.cache_clear()


def test_digits_are_the_published_ones():
    train, test = mx.data.load("digits"), mx.data.load("digits", "test")
    assert train["image"].shape == (1197, 8, 8, 1)
    assert test["image"].shape == (600, 8, 8, 1)
    # The class counts of the UCI repository's test file, from which this set is made.
    counts = np.bincount(np.concatenate([train["label"], test["label"]]))
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert train["image"].max() == 255
    with pytest.raises(ValueError, match="read-only"):
        train["label"][0] = 1


# Sizes, shapes, and the number of labels of the published sets.
SETS = [
    pytest.param("mnist", "test", (10000, 28, 28, 1), 10, marks=needs("mnist")),
    pytest.param(
        "fashion_mnist", "test", (10000, 28, 28, 1), 10, marks=needs("fashion_mnist")
    ),
    pytest.param("cifar10", "test", (10000, 32, 32, 3), 10, marks=needs("cifar10")),
    pytest.param(
        "omniglot", "test[:2000]", (2000, 105, 105, 1), None, marks=needs("omniglot")
    ),
]


@pytest.mark.parametrize(("name", "split", "shape", "classes"), SETS)
@pytest.mark.slow
def test_prepared_sets(name, split, shape, classes):
    data = mx.data.load(name, split)
    assert data["image"].shape == shape
    assert data["image"].dtype == np.uint8
    assert data["label"].dtype == np.int32
    if classes:
        assert (
            np.bincount(data["label"]).tolist() == [shape[0] // classes] * classes
            or name == "mnist"
        )
        assert set(data["label"]) == set(range(classes))
    else:
        assert set(np.unique(data["image"])) == {0, 255}
        assert {"alphabet", "alphabet_char_id"} <= data.keys()


@needs("mnist")
def test_reading_needs_no_tensorflow_and_is_cached(tmp_path, monkeypatch):
    first = mx.data.load("mnist", "test[:500]")
    assert "tensorflow" not in sys.modules
    assert mx.data.load("mnist", "test[:500]")["image"] is first["image"], (
        "kept in memory"
    )
    files = list((tmp_path / "cache" / "metajax").glob("mnist-*.npz"))
    assert len(files) == 1

    def decode(*args):
        raise AssertionError("the file in the cache must do")

    data_module._load_prepared.cache_clear()
    with monkeypatch.context() as m:
        m.setattr(data_module, "_decode", decode)
        np.testing.assert_array_equal(
            mx.data.load("mnist", "test[:500]")["image"], first["image"]
        )

    data_module._load_prepared.cache_clear()
    files[0].write_bytes(b"not a cache")  # a broken cache is made again
    np.testing.assert_array_equal(
        mx.data.load("mnist", "test[:500]")["label"], first["label"]
    )


def test_decoding_recommends_no_other_package(monkeypatch, caplog):
    class Source:
        def __getitem__(self, i):
            logging.getLogger("absl").warning(
                "OpenCV is not installed. Defaulting to PIL"
            )
            logging.getLogger("absl").warning("image %d is odd", i)
            return {"image": np.zeros((2, 2, 1), np.uint8), "label": i}

    monkeypatch.setattr(data_module, "_open", lambda *_: Source())
    arrays = data_module._decode("mnist", "test", None, 2)
    assert arrays["label"].tolist() == [0, 1]
    assert caplog.messages == ["image 0 is odd", "image 1 is odd"]


@needs("mnist")
def test_the_argument_wins_over_the_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert len(mx.data.load("mnist", "test[:10]", data_dir=TFDS)["label"]) == 10


@needs("mnist")
def test_an_unknown_split_names_those_there_are():
    with pytest.raises(
        ValueError, match=r"split must be one of \['train', 'test'\].*got 'valid'"
    ):
        mx.data.load("mnist", "valid")
    with pytest.raises(ValueError, match=r"split 'train\[:0\]' of mnist is empty"):
        mx.data.load("mnist", "train[:0]")


@pytest.mark.parametrize("name", [n for n in mx.data.NAMES if n != "digits"])
def test_a_missing_set_says_where_it_was_looked_for_and_how_to_get_it(name, tmp_path):
    with pytest.raises(FileNotFoundError) as e:
        mx.data.load(name, data_dir=tmp_path)
    assert str(tmp_path) in str(e.value)
    assert f"metajax data prepare {name} --data_dir {tmp_path}" in str(e.value)
    assert not any(tmp_path.glob(name)), "looking must not download"


def copied(tmp_path):
    shutil.copytree(Path(TFDS) / "mnist", tmp_path / "mnist")
    for path in (tmp_path / "mnist").rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    (record,) = tmp_path.glob("mnist/*/*test.array_record*")
    return record


@needs("mnist")
@pytest.mark.parametrize("damage", ["truncated", "emptied", "flipped", "gone", "info"])
def test_damaged_files_are_named(damage, tmp_path):
    record = copied(tmp_path)
    size = record.stat().st_size
    if damage == "truncated":
        with record.open("r+b") as f:
            f.truncate(size // 2)
    elif damage == "emptied":
        record.write_bytes(b"")
    elif damage == "gone":
        record.unlink()
    elif damage == "info":
        (record.parent / "dataset_info.json").write_text("{")
    else:
        content = bytearray(record.read_bytes())
        for at in range(size // 4, size // 4 + 4096):
            content[at] ^= 0xFF
        record.write_bytes(bytes(content))
    with pytest.raises(ValueError, match=f"(?s){tmp_path}.*metajax data prepare mnist"):
        mx.data.load("mnist", "test", data_dir=tmp_path)


@needs("mnist")
def test_a_format_without_random_access_is_named(tmp_path):
    info = copied(tmp_path).parent / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(
        ValueError,
        match=r"(?s)without random access.*TFRECORD.*metajax data prepare mnist",
    ):
        mx.data.load("mnist", "test", data_dir=tmp_path)


def test_the_command_is_the_route_of_tfds(tmp_path, monkeypatch, capsys):
    """`metajax data prepare` builds through tfds; here with its download replaced, since tests
    have no network.
    """
    import tensorflow_datasets as tfds

    from metajax.cli import main

    calls = []
    monkeypatch.setattr(
        tfds.core.DatasetBuilder,
        "download_and_prepare",
        lambda self: calls.append((self.name, str(self.data_dir))),
    )
    # Nothing was prepared by the replacement, and that is noticed.
    assert main(["data", "prepare", "kmnist", "--data_dir", str(tmp_path)]) == 1
    assert "is not there" in capsys.readouterr().err
    assert calls[0][0] == "kmnist"
    assert calls[0][1].startswith(str(tmp_path))
    assert main(["data", "prepare", "emnist/letters", "--data_dir", str(tmp_path)]) == 1
    assert "letters" in calls[1][1]


def test_the_command_rejects_unknown_names():
    done = subprocess.run(
        [sys.executable, "-m", "metajax", "data", "prepare", "imagenet"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "must be one of mnist" in done.stderr


@pytest.mark.parametrize("name", ["imagenet", "mnist/letters", "digits/test"])
def test_unknown_names(name):
    with pytest.raises(ValueError, match="name must be one of digits, mnist"):
        mx.data.load(name)


def test_what_is_done_to_the_dict_is_not_done_to_the_next_one():
    data = mx.data.load("digits")
    data["image"] = data["image"] / 255
    assert mx.data.load("digits")["image"].dtype == np.uint8


def test_by_class_keeps_every_example_beside_its_label():
    data = mx.data.load("digits")
    sorted_data = mx.data.by_class(
        {"image": data["image"], "label": data["label"] * 3 + 2}
    )  # labels with gaps
    assert sorted_data["start"].tolist() == [
        0,
        *np.bincount(data["label"]).cumsum().tolist(),
    ]
    for c in range(10):
        here = slice(sorted_data["start"][c], sorted_data["start"][c + 1])
        np.testing.assert_array_equal(
            sorted_data["image"][here], data["image"][data["label"] == c]
        )
        assert (sorted_data["label"][here] == c).all()


def test_resize_by_a_whole_factor_of_a_constant_image_and_of_a_step():
    image = np.zeros((2, 8, 8, 1), np.uint8)
    image[0], image[1, :, 4:] = 200, 100
    small = mx.data.resize({"image": image, "label": np.zeros(2, np.int32)}, 4)["image"]
    assert small.dtype == np.uint8
    assert (small[0] == 200).all()
    np.testing.assert_array_equal(small[1, 0, :, 0], np.sort(small[1, 0, :, 0]))
    assert abs(float(small[1].mean()) - 50) < 1
    with pytest.raises(ValueError, match=r"\[M, height, width, channels\]"):
        mx.data.resize({"image": image[..., 0], "label": np.zeros(2, np.int32)}, 4)
