"""Sets for few-shot learning: which classes are for training, for validation and for the test."""

import csv
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np

from metajax.data._arrange import Arrays, by_class, resize
from metajax.data._prepared import builder_of, cache_file, cached, load, read_only
from metajax.data._prepared import directory as tfds_directory

_HERE = Path(__file__).parent
_PARTS = {
    "train": "train.csv",
    "validation": "val.csv",
    "test": "test.csv",
}  # and the files of mini-ImageNet


def few_shot(name: str, split: str = "train", data_dir: str | os.PathLike | None = None) -> Arrays:
    """Loads the classes of one part of a set for few-shot learning, `by_class`.

    The parts share no class. They are fixed, and files of this package unless said otherwise:

    - ``omniglot`` (Lake et al. 2015), 20 drawings a character: 1,100 characters for training, 100
      for validation and 423 for the test, drawn once irrespective of the alphabet as by Santoro et
      al. 2016 and Finn et al. 2017, who published no list.
    - ``omniglot_vinyals``: 1,028, 172 and 423 characters, nearly all of an alphabet in one part;
      the list named after Vinyals et al. 2016 that Prototypical Networks and Torchmeta use.
    - ``cifar_fs`` (Bertinetto et al. 2019): 64, 16 and 20 classes of CIFAR-100, 600 images each.
    - ``mini_imagenet`` (Ravi & Larochelle 2017): whatever classes ``train.csv``, ``val.csv`` and
      ``test.csv`` list (published: 64, 16 and 20), with the columns ``filename`` and ``label`` and
      the files in ``images/``.
    - ``digits``: classes 0 to 4, 5 and 6, 7 to 9 of the set that comes with the package; for
      examples.

    Omniglot is scaled to 28x28 and inverted as is usual, strokes 255 on 0, and kept so in
    ``$XDG_CACHE_HOME/metajax``. Mini-ImageNet is scaled to 84x84 where it is not, and takes 1.3 GB
    in all.

    Args: name: one of ``metajax.data.FEW_SHOT``. split: ``"train"``, ``"validation"``, ``"test"``,
      or several joined by ``+``, e.g. ``"train+validation"``. data_dir: the tfds directory, by
      default ``$TFDS_DATA_DIR``, else ``~/tensorflow_datasets``. Mini-ImageNet is its folder
      ``mini_imagenet``, which tfds cannot prepare.

    Returns: ``image``, uint8 ``[M, height, width, channels]``, ``label`` and ``start`` as by
      `by_class`, read-only.

    Raises:
      ValueError: an unknown name or split, parts that share a class, or files that cannot be read.
      FileNotFoundError: a set that is not there.

    >>> import metajax as mx
    >>> data = mx.data.few_shot("digits", "train+validation")
    >>> data["image"].shape, data["start"].tolist()
    ((1264, 8, 8, 1), [0, 178, 360, 537, 720, 901, 1083, 1264])
    """
    if not isinstance(name, str) or name not in _SETS:
        raise ValueError(f"name must be one of {', '.join(FEW_SHOT)}, got {name!r}")
    parts = split.split("+") if isinstance(split, str) else []
    if not parts or len(set(parts)) < len(parts) or not set(parts) <= set(_PARTS):
        raise ValueError(
            f"split must be 'train', 'validation' or 'test', or several joined by '+', e.g. 'train+validation'; "
            f"got {split!r}"
        )
    return read_only(by_class(_SETS[name](tfds_directory(data_dir), parts)))


def _chosen(data: Arrays, part_of: list[str], parts: list[str]) -> Arrays:
    # The examples whose class is in one of the parts; part_of[label] is the part of a class.
    keep = np.isin(part_of, parts)[data["label"]]
    return {"image": data["image"][keep], "label": data["label"][keep]}


def _joined(name: str, directory: Path) -> Arrays:
    halves = [load(name, half, directory) for half in ("train", "test")]
    return {k: np.concatenate([half[k] for half in halves]) for k in halves[0]}


def _digits(directory: Path, parts: list[str]) -> Arrays:
    return _chosen(
        _joined("digits", directory), ["train"] * 5 + ["validation"] * 2 + ["test"] * 3, parts
    )


def _cifar_fs(directory: Path, parts: list[str]) -> Arrays:
    part_of = [row["part"] for row in _rows(_HERE / "cifar_fs.csv")]
    return _chosen(_joined("cifar100", directory), part_of, parts)


def _omniglot(split: str) -> Callable[[Path, list[str]], Arrays]:
    def make(directory, parts):
        return _chosen(
            _characters(directory), [part for *_, part in omniglot_characters(split)], parts
        )

    return make


def omniglot_characters(split: str = "omniglot") -> list[tuple[str, int, str]]:
    """All 1,623 characters of Omniglot as (alphabet, number from 1, part), by alphabet."""
    letters = {"t": "train", "v": "validation", "e": "test"}
    rows = _rows(_HERE / "omniglot.csv")
    return [(row["alphabet"], i, letters[c]) for row in rows for i, c in enumerate(row[split], 1)]


@lru_cache(maxsize=1)
def _characters(directory: Path) -> Arrays:
    # All of Omniglot at 28x28, labelled by the position in `omniglot_characters`.
    builder = builder_of("omniglot", directory)
    files = [path for half in ("train", "test") for path in builder.info.splits[half].filepaths]

    def make():
        data = _joined("omniglot", directory)
        first = np.cumsum([0] + [len(row["omniglot"]) for row in _rows(_HERE / "omniglot.csv")])
        small = resize({"image": data["image"], "label": data["label"]}, 28)["image"]
        return {
            "image": 255 - small,
            "label": (first[data["alphabet"]] + data["alphabet_char_id"]).astype(np.int32),
        }

    return cached(cache_file("omniglot", "28x28", builder, files), make)


def _mini_imagenet(directory: Path, parts: list[str]) -> Arrays:
    folder = directory / "mini_imagenet"
    missing = [file for file in (*_PARTS.values(), "images") if not (folder / file).exists()]
    if missing:
        raise FileNotFoundError(
            f"mini_imagenet was looked for in {folder}, which lacks {', '.join(missing)}. Put there train.csv, "
            f"val.csv and test.csv, with the columns filename and label, and the files they name in images/"
        )
    tables = {part: _rows(folder / file) for part, file in _PARTS.items()}
    for part, rows in tables.items():
        if not rows or not {"filename", "label"} <= rows[0].keys():
            raise ValueError(
                f"{folder / _PARTS[part]} must have the columns filename and label, and at least one row"
            )
    classes = [{row["label"] for row in rows} for rows in tables.values()]
    shared = (classes[0] & classes[1]) | (classes[0] & classes[2]) | (classes[1] & classes[2])
    if shared:
        raise ValueError(
            f"{folder}: classes are in more than one of train.csv, val.csv and test.csv: {sorted(shared)}"
        )
    rows = [row for part in parts for row in tables[part]]
    image = np.empty((len(rows), 84, 84, 3), np.uint8)
    for i, row in enumerate(rows):
        image[i] = _pixels(folder / "images" / row["filename"], 84)
    _, label = np.unique([row["label"] for row in rows], return_inverse=True)
    return {"image": image, "label": label}


def _pixels(file: Path, size: int) -> np.ndarray:
    from PIL import Image  # imported here: most programs read no image files

    try:
        with Image.open(file) as f:
            return np.asarray(f.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))
    except OSError as e:
        raise ValueError(
            f"{file} cannot be read as an image ({e}); replace it, or leave it out of the csv file"
        ) from e


def _rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as f:
        return list(csv.DictReader(f))


_SETS: dict[str, Callable[[Path, list[str]], Arrays]] = {
    "digits": _digits,
    "omniglot": _omniglot("omniglot"),
    "omniglot_vinyals": _omniglot("omniglot_vinyals"),
    "cifar_fs": _cifar_fs,
    "mini_imagenet": _mini_imagenet,
}
FEW_SHOT = tuple(_SETS)
