"""Sets in a folder of image files, and three csv files that say which is of which class."""

import csv
from pathlib import Path

import numpy as np

from metajax.io import Arrays

Table = list[dict[str, str]]  # the rows of a csv file, by the names of its columns

PARTS = {"train": "train.csv", "validation": "val.csv", "test": "test.csv"}


def load_folder(folder: Path, parts: list[str], size: int) -> Arrays:
    """The images of some parts, scaled to ``size`` by ``size`` pixels where they are not.

    The files ``train.csv``, ``val.csv`` and ``test.csv`` have the columns ``filename`` and
    ``label``; the images are in ``images/``.
    """
    _check_all_there(folder)
    tables = {part: _read_table(folder / file) for part, file in PARTS.items()}
    _check_no_shared_classes(folder, tables)

    rows = []
    for part in parts:
        rows += tables[part]
    shape = (len(rows), size, size, 3)
    image = np.empty(shape, np.uint8)
    for i, row in enumerate(rows):
        file = folder / "images" / row["filename"]
        image[i] = _read_image(file, size)

    classes = [row["label"] for row in rows]
    _, label = np.unique(classes, return_inverse=True)
    return {"image": image, "label": label}


def read_csv(file: Path) -> Table:
    """All rows of a csv file."""
    with file.open(newline="") as f:
        return list(csv.DictReader(f))


def _read_table(file: Path) -> Table:
    rows = read_csv(file)
    if not rows or not {"filename", "label"} <= rows[0].keys():
        raise ValueError(
            f"{file} must have the columns filename and label, and at least one row"
        )
    return rows


def _read_image(file: Path, size: int) -> np.ndarray:
    from PIL import Image  # here: most programs read no image files

    try:
        with Image.open(file) as f:
            image = f.convert("RGB")
            image = image.resize((size, size), Image.Resampling.BILINEAR)
    except OSError as e:
        raise ValueError(
            f"{file} cannot be read as an image ({e}); replace it, or leave it out of the csv file"
        ) from e
    return np.asarray(image)


def _check_all_there(folder: Path) -> None:
    needed = [*PARTS.values(), "images"]
    missing = [file for file in needed if not (folder / file).exists()]
    if missing:
        raise FileNotFoundError(
            f"{folder.name} was looked for in {folder}, which lacks {', '.join(missing)}. Put "
            f"there train.csv, val.csv and test.csv, with the columns filename and label, and the "
            f"files they name in images/"
        )


def _check_no_shared_classes(folder: Path, tables: dict[str, Table]) -> None:
    seen = set()
    for part, rows in tables.items():
        classes = {row["label"] for row in rows}
        shared = sorted(classes & seen)
        if shared:
            file = folder / PARTS[part]
            raise ValueError(
                f"{file} has classes that are in more than one of the parts: {shared}"
            )
        seen |= classes
