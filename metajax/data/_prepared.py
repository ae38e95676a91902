"""Data sets that come with the package, or that `tensorflow_datasets` has prepared in a folder."""

import contextlib
import logging
import os
from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metajax import io
from metajax._arguments import checked
from metajax.data._cache import cache_file, cached, read_only
from metajax.io import Arrays


class _DataSet(NamedTuple):
    """What there is to know of a set besides its name.

    Attributes:
      channels: of the images, where fewer are kept than are stored.
      has_configs: whether a name may be followed by the config of tfds, ``"NAME/CONFIG"``.
    """

    channels: int | None = None
    has_configs: bool = False


# To add a set that tensorflow_datasets knows: a row here, and its name in the README.
_SETS = {
    "digits": _DataSet(),  # the one that comes with the package
    "mnist": _DataSet(),
    "fashion_mnist": _DataSet(),
    "kmnist": _DataSet(),
    "emnist": _DataSet(has_configs=True),
    "omniglot": _DataSet(channels=1),  # its three are equal
    "cifar10": _DataSet(),
    "cifar100": _DataSet(),
}
NAMES = tuple(_SETS)

# The writers of the test split come later in the file.
_DIGITS_SPLITS = {"train": slice(0, 1197), "test": slice(1197, 1797)}


@checked
def load(
    name: str = "digits",
    split: str = "train",
    data_dir: str | os.PathLike | None = None,
) -> Arrays:
    """Loads a split as read-only arrays.

    ``digits`` (Alpaydin & Kaynak 1998, 1,797 handwritten digits of 8x8, CC BY 4.0) comes with the
    package. All others are read from a directory prepared by `tensorflow_datasets` in a
    random-access format, without TensorFlow; they are decoded once and then kept in memory and in
    ``$XDG_CACHE_HOME/metajax`` (``~/.cache/metajax``).

    Args:
      name: one of ``metajax.data.NAMES``; ``emnist`` may name its config, e.g.
        ``"emnist/letters"``.
      split: ``"train"`` or ``"test"``, for all but ``digits`` also a slice such as
        ``"train[:1000]"``.
      data_dir: the tfds directory; by default ``$TFDS_DATA_DIR``, else ``~/tensorflow_datasets``.

    Returns:
      ``image``, uint8 ``[M, height, width, channels]``, and ``label``, int32 ``[M]``; further
      integer features where the set has them (``alphabet`` and ``alphabet_char_id`` of Omniglot,
      ``coarse_label`` of CIFAR-100). Omniglot's three equal channels are returned as one; EMNIST's
      images are stored transposed in the original, and so here.

    Raises:
      ValueError: an unknown name or split, or files that are corrupt.
      FileNotFoundError: a set that is not there; the message says where it was looked for and how
        to prepare it.

    >>> import metajax as mx
    >>> data = mx.data.load("digits")
    >>> data["image"].shape, data["image"].dtype, data["label"].shape
    ((1197, 8, 8, 1), dtype('uint8'), (1197,))
    """
    set_name, _, config = str(name).partition("/")
    if set_name not in _SETS or (config and not _SETS[set_name].has_configs):
        raise ValueError(f"name must be one of {', '.join(NAMES)}, got {name!r}")
    if not isinstance(split, str):
        raise TypeError(
            f"split must be a string such as 'train' or 'test', got {split!r}"
        )

    if name == "digits":
        arrays = _load_digits(split)
    else:
        arrays = _load_prepared(name, split, tfds_directory(data_dir))
    return dict(arrays)  # a dict of the caller's own: the other is kept


def tfds_directory(data_dir: str | os.PathLike | None) -> Path:
    """Where `tensorflow_datasets` keeps its sets."""
    path = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(path).expanduser()


def builder_of(name: str, directory: Path) -> Any:
    """The tfds builder of a set in ``directory``, or an error that says how to get it there."""
    import tensorflow_datasets as tfds  # here: a third of a second that most programs can save

    command = _prepare_command(name, directory)
    try:
        builder = tfds.builder(name, data_dir=directory)
    except Exception as e:
        raise ValueError(
            f"{name} in {directory} cannot be opened ({e}); remove it and prepare it again: "
            f"{command}"
        ) from e
    if not builder.info.splits:
        raise FileNotFoundError(
            f"{name} was looked for in {directory} (the argument data_dir, else $TFDS_DATA_DIR, "
            f"else ~/tensorflow_datasets) and is not there. Download and prepare it with\n"
            f"  {command}"
        )
    return builder


def _prepare_command(name: str, directory: str | os.PathLike) -> str:
    return f"metajax data prepare {name} --data_dir {directory}"


@lru_cache(maxsize=2)
def _load_digits(split: str) -> Arrays:
    if split not in _DIGITS_SPLITS:
        raise ValueError(f"split must be 'train' or 'test' for digits, got {split!r}")
    both = io.load_arrays(Path(__file__).with_name("digits.npz"))
    part = _DIGITS_SPLITS[split]
    arrays = {feature: x[part] for feature, x in both.items()}
    return read_only(arrays)


@lru_cache(maxsize=16)
def _load_prepared(name: str, split: str, directory: Path) -> Arrays:
    builder = builder_of(name, directory)
    try:
        info = builder.info.splits[split]
        size = info.num_examples
    except Exception as e:
        known = list(builder.info.splits)
        raise ValueError(
            f"split must be one of {known}, or a slice of one, for {name} in {directory}; got "
            f"{split!r}"
        ) from e
    if not size:
        raise ValueError(f"split {split!r} of {name} is empty")

    file = cache_file(name, split, builder.data_dir, info.filepaths)
    return cached(file, partial(_decode, name, split, builder, size))


def _decode(name: str, split: str, builder: Any, size: int) -> Arrays:
    source = _open(name, split, builder, size)
    channels = _SETS[name.split("/")[0]].channels
    arrays: Arrays = {}
    for i in range(size):
        try:
            with _without_advice():
                example = source[i]
        except Exception as e:
            raise _damaged(
                name, builder, f"is corrupt at example {i} of {split} ({e})"
            ) from e

        features = _numeric_features(example, channels)
        for feature, x in features.items():
            if i == 0:
                arrays[feature] = np.empty((size, *x.shape), x.dtype)
            arrays[feature][i] = x
    return arrays


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
    """tensorflow_datasets recommends OpenCV at its first image; Pillow gives the same pixels."""
    logger = logging.getLogger("absl")

    def is_other(record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith("OpenCV is not installed")

    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)


def _open(name: str, split: str, builder: Any, size: int) -> Any:
    """A sequence of the examples of a split."""
    try:
        source = builder.as_data_source(split=split)
    except NotImplementedError as e:
        file_format = builder.info.file_format
        problem = f"is stored in a format without random access ({file_format})"
        raise _damaged(name, builder, problem) from e
    except Exception as e:
        raise _damaged(name, builder, f"cannot be read ({e})") from e
    if len(source) != size:
        problem = f"is truncated: {len(source)} of the {size} examples of {split}"
        raise _damaged(name, builder, problem)
    return source


def _damaged(name: str, builder: Any, problem: str) -> ValueError:
    command = _prepare_command(name, builder.data_dir_root)
    folder = builder.data_dir
    return ValueError(
        f"{name} in {folder} {problem}; remove that folder and run: {command}"
    )


def _numeric_features(example: dict[str, Any], channels: int | None) -> Arrays:
    """The images of an example in uint8 and its integers in int32; strings are left out."""
    features = {}
    for feature, value in example.items():
        if not isinstance(value, (np.ndarray, np.integer, int)):
            continue
        x = np.asarray(value)
        if x.ndim == 0:
            features[feature] = x.astype(np.int32)
        else:
            x = x[..., :channels]
            features[feature] = x.astype(np.uint8)
    return features
