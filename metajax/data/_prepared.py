"""Real data as arrays: `tensorflow_datasets` in, ``{"image": uint8, "label": int32}`` out."""

import contextlib
import hashlib
import os
import zipfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from metajax import io

NAMES = ("digits", "mnist", "fashion_mnist", "kmnist", "emnist", "omniglot", "cifar10", "cifar100")
_DIGITS_TRAIN = 1197  # of 1,797; the rest, by writers who come later in the file, is the test split


def load(
    name: str = "digits", split: str = "train", data_dir: str | os.PathLike | None = None
) -> dict[str, np.ndarray]:
    """Loads a split as read-only arrays.

    ``digits`` (Alpaydin & Kaynak 1998, 1,797 handwritten digits of 8x8, CC BY 4.0) comes with the
    package. All others are read from a directory prepared by `tensorflow_datasets` in a
    random-access format, without TensorFlow; they are decoded once and then kept in memory and in
    ``$XDG_CACHE_HOME/metajax`` (``~/.cache/metajax``).

    Args: name: one of ``metajax.data.NAMES``; ``emnist`` may name its config, e.g.
      ``"emnist/letters"``. split: ``"train"`` or ``"test"``, for all but ``digits`` also a slice
      such as ``"train[:1000]"``. data_dir: the tfds directory; by default ``$TFDS_DATA_DIR``, else
      ``~/tensorflow_datasets``.

    Returns: ``image``, uint8 ``[M, height, width, channels]``, and ``label``, int32 ``[M]``;
      further integer features where the set has them (``alphabet`` and ``alphabet_char_id`` of
      Omniglot, ``coarse_label`` of CIFAR-100). Omniglot's three equal channels are returned as one;
      EMNIST's images are stored transposed in the original, and so here.

    Raises: ValueError: an unknown name or split, or files that are corrupt. FileNotFoundError: a
      set that is not there; the message says where it was looked for and how to prepare it.

    >>> import metajax as mx
    >>> data = mx.data.load("digits")
    >>> data["image"].shape, data["image"].dtype, data["label"].shape
    ((1197, 8, 8, 1), dtype('uint8'), (1197,))
    """
    if not isinstance(name, str) or name.split("/")[0] not in NAMES:
        raise ValueError(f"name must be one of {', '.join(NAMES)}, got {name!r}")
    if not isinstance(split, str):
        raise TypeError(f"split must be a string such as 'train' or 'test', got {split!r}")
    if name == "digits":
        return dict(_digits(split))
    return dict(
        _load(name, split, directory(data_dir))
    )  # changing the dict does not change what is kept


def directory(data_dir: str | os.PathLike | None) -> Path:
    return Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


@lru_cache(maxsize=2)
def _digits(split: str) -> dict[str, np.ndarray]:
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test' for digits, got {split!r}")
    part = slice(None, _DIGITS_TRAIN) if split == "train" else slice(_DIGITS_TRAIN, None)
    return read_only(
        {k: v[part] for k, v in io.read(Path(__file__).with_name("digits.npz")).items()}
    )


@lru_cache(maxsize=16)
def _load(name: str, split: str, directory: Path) -> dict[str, np.ndarray]:
    builder = builder_of(name, directory)
    known = list(builder.info.splits)
    try:
        wanted = builder.info.splits[split]
        size = wanted.num_examples
    except Exception as e:
        raise ValueError(
            f"split must be one of {known}, or a slice of one, for {name} in {directory}; got {split!r}"
        ) from e
    if not size:
        raise ValueError(f"split {split!r} of {name} is empty")
    return cached(
        cache_file(name, split, builder, wanted.filepaths),
        lambda: _decode(name, split, builder, size),
    )


def cached(file: Path, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    if file.exists():
        try:
            return read_only(io.read(file))
        except (OSError, ValueError, zipfile.BadZipFile):
            pass  # written half, or by another program: make it again
    arrays = make()
    with contextlib.suppress(
        OSError
    ):  # no room, or a home that cannot be written to: the arrays are in memory
        io.write(file, arrays)
    return read_only(arrays)


def builder_of(name: str, directory: Path) -> Any:
    # The tfds builder of a set that is there, or an error that says how to get it there.
    import tensorflow_datasets as tfds  # imported here: a third of a second that most programs need not spend

    hint = f"metajax data prepare {name} --data_dir {directory}"
    try:
        builder = tfds.builder(name, data_dir=directory)
    except Exception as e:
        raise ValueError(
            f"{name} in {directory} cannot be opened ({e}); remove it and prepare it again: {hint}"
        ) from e
    if not builder.info.splits:
        raise FileNotFoundError(
            f"{name} was looked for in {directory} (the argument data_dir, else $TFDS_DATA_DIR, else "
            f"~/tensorflow_datasets) and is not there. Download and prepare it with\n  {hint}"
        )
    return builder


def _decode(name: str, split: str, builder: Any, size: int) -> dict[str, np.ndarray]:
    again = f"remove that folder and run: metajax data prepare {name} --data_dir {builder.data_dir_root}"
    try:
        source = builder.as_data_source(split=split)
    except NotImplementedError as e:
        raise ValueError(
            f"{name} in {builder.data_dir} is stored in a format without random access ({builder.info.file_format}); "
            f"{again}"
        ) from e
    except Exception as e:
        raise ValueError(f"{name} in {builder.data_dir} cannot be read ({e}); {again}") from e
    if len(source) != size:
        raise ValueError(
            f"{name} {split} in {builder.data_dir} is truncated: {len(source)} of {size} examples; {again}"
        )
    columns: dict[str, np.ndarray] = {}
    for i in range(size):
        try:
            example = source[i]
        except Exception as e:
            raise ValueError(
                f"{name} {split} in {builder.data_dir} is corrupt at example {i} ({e}); {again}"
            ) from e
        if not columns:
            kept = {
                k: np.asarray(v)
                for k, v in example.items()
                if isinstance(v, (np.ndarray, np.integer, int))
            }
            columns = {
                k: np.empty((size, *_narrow(name, v).shape), _dtype(v)) for k, v in kept.items()
            }
        for k, column in columns.items():
            column[i] = _narrow(name, np.asarray(example[k]))
    return columns


def _narrow(name: str, x: np.ndarray) -> np.ndarray:
    return x[..., :1] if name == "omniglot" and x.ndim == 3 else x


def _dtype(x: np.ndarray) -> Any:
    return np.uint8 if x.ndim else np.int32


def cache_file(name: str, split: str, builder: Any, paths: list) -> Path:
    stats = [
        (str(p), os.stat(p).st_size, os.stat(p).st_mtime_ns) for p in paths if os.path.exists(p)
    ]
    fingerprint = hashlib.sha256(
        repr((1, str(builder.data_dir), split, stats)).encode()
    ).hexdigest()[:16]
    root = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return root / "metajax" / f"{name.replace('/', '-')}-{fingerprint}.npz"


def read_only(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    for x in arrays.values():
        x.flags.writeable = False
    return arrays
