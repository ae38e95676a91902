"""Sets for few-shot learning: which classes are for training, for validation and for the test."""

import os
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from metajax._arguments import checked
from metajax.data._arrange import by_class, resize
from metajax.data._cache import cache_file, cached, read_only
from metajax.data._image_folder import PARTS, load_folder, read_csv
from metajax.data._prepared import builder_of, load, tfds_directory
from metajax.io import Arrays

_HERE = Path(__file__).parent


@checked
def few_shot(
    name: str,
    split: str = "train",
    data_dir: str | os.PathLike | None = None,
) -> Arrays:
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

    Args:
      name: one of ``metajax.data.FEW_SHOT``.
      split: ``"train"``, ``"validation"``, ``"test"``, or several joined by ``+``, e.g.
        ``"train+validation"``.
      data_dir: the tfds directory, by default ``$TFDS_DATA_DIR``, else ``~/tensorflow_datasets``.
        Mini-ImageNet is its folder ``mini_imagenet``, which tfds cannot prepare.

    Returns:
      ``image``, uint8 ``[M, height, width, channels]``, ``label`` and ``start`` as by `by_class`,
      read-only.

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
    parts = str(split).split("+")
    has_repeats = len(set(parts)) < len(parts)
    if has_repeats or not set(parts) <= PARTS.keys():
        raise ValueError(
            f"split must be like 'train', 'validation' or 'train+test', got {split!r}"
        )

    load_parts = _SETS[name]
    data = load_parts(tfds_directory(data_dir), parts)
    return read_only(by_class(data))


def omniglot_characters(column: str = "omniglot") -> list[tuple[str, int, str]]:
    """All 1,623 characters of Omniglot as (alphabet, number from 1, part), by alphabet.

    The parts are those of a column of ``omniglot.csv``, which has a letter for each character.
    """
    part_of_letter = {"t": "train", "v": "validation", "e": "test"}
    characters = []
    for row in read_csv(_HERE / "omniglot.csv"):
        for number, letter in enumerate(row[column], start=1):
            characters.append((row["alphabet"], number, part_of_letter[letter]))
    return characters


# All examples of a set, labelled 0..C-1.


def _both_halves(name: str, directory: Path) -> Arrays:
    """The training and the test split of a set, whose classes are the same."""
    train = load(name, "train", directory)
    test = load(name, "test", directory)
    both = {}
    for feature, x in train.items():
        both[feature] = np.concatenate([x, test[feature]])
    return both


@lru_cache(maxsize=1)
def _small_omniglot(directory: Path) -> Arrays:
    """All of Omniglot at 28x28, labelled by the position in `omniglot_characters`."""
    builder = builder_of("omniglot", directory)
    files = [
        *builder.info.splits["train"].filepaths,
        *builder.info.splits["test"].filepaths,
    ]
    file = cache_file("omniglot", "28x28", builder.data_dir, files)
    return cached(file, partial(_scale_omniglot, directory))


def _scale_omniglot(directory: Path) -> Arrays:
    data = _both_halves("omniglot", directory)
    image = 255 - resize(data, 28)["image"]

    alphabets = read_csv(_HERE / "omniglot.csv")
    num_characters = [len(row["omniglot"]) for row in alphabets]
    first_of_alphabet = np.append(0, np.cumsum(num_characters))
    label = first_of_alphabet[data["alphabet"]] + data["alphabet_char_id"]
    return {"image": image, "label": label.astype(np.int32)}


# The part that each class is in.


def _digits_parts() -> list[str]:
    return 5 * ["train"] + 2 * ["validation"] + 3 * ["test"]


def _omniglot_parts(column: str) -> list[str]:
    return [part for _, _, part in omniglot_characters(column)]


def _csv_parts(file: str) -> list[str]:
    """Of a file with a column ``part``, a row for each class, in the order of the labels."""
    return [row["part"] for row in read_csv(_HERE / file)]


# The table of all sets.

_LoadParts = Callable[
    [Path, list[str]], Arrays
]  # (tfds directory, parts) -> their examples


def _by_list(
    load_all: Callable[[Path], Arrays],
    part_of_class: Callable[[], list[str]],
) -> _LoadParts:
    """A set whose classes are divided by a list in this package."""

    def load_parts(directory, parts):
        data = load_all(directory)
        part_of = part_of_class()
        label = data["label"]
        check_parts(part_of, num_classes=int(label.max()) + 1)
        is_wanted = np.isin(part_of, parts)
        keep = is_wanted[label]
        return {"image": data["image"][keep], "label": label[keep]}

    return load_parts


def check_parts(part_of_class: Sequence[str], num_classes: int) -> None:
    """A list of classes must name the part of each."""
    if len(part_of_class) < num_classes:
        raise ValueError(
            f"the list of classes has {len(part_of_class)} rows, but labels go up to "
            f"{num_classes - 1}: give one row a class, in the order of the labels"
        )
    for row, part in enumerate(part_of_class):
        if part not in PARTS:
            raise ValueError(
                f"part of class {row} in the list of classes must be one of {PARTS}, got {part!r}"
            )


def _in_folder(name: str, size: int) -> _LoadParts:
    """A set whose images and lists of classes are in a folder of its own."""
    return lambda directory, parts: load_folder(directory / name, parts, size)


# To add a set: a row here and, if it is divided by a list, the list as a csv file beside this one.
_SETS = {
    "digits": _by_list(partial(_both_halves, "digits"), _digits_parts),
    "omniglot": _by_list(_small_omniglot, partial(_omniglot_parts, "omniglot")),
    "omniglot_vinyals": _by_list(
        _small_omniglot, partial(_omniglot_parts, "omniglot_vinyals")
    ),
    "cifar_fs": _by_list(
        partial(_both_halves, "cifar100"), partial(_csv_parts, "cifar_fs.csv")
    ),
    "mini_imagenet": _in_folder("mini_imagenet", size=84),
}
FEW_SHOT = tuple(_SETS)
