"""``metajax data prepare NAME [--data_dir DIR]``: downloads and prepares a data set with
tensorflow_datasets.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from metajax.data import NAMES
from metajax.data._prepared import builder_of


def main(arguments: Sequence[str] | None = None, prog: str = "metajax data prepare") -> int:
    """Prepares one set in the random-access format array_record."""
    parser = argparse.ArgumentParser(
        prog, description="Downloads and prepares a data set with tensorflow_datasets."
    )
    known = [n for n in NAMES if n != "digits"]
    parser.add_argument(
        "name",
        help=f"{', '.join(known)}; with a configuration, where a set has several: emnist/letters",
    )
    parser.add_argument(
        "--data_dir", type=Path, help="default: $TFDS_DATA_DIR, else ~/tensorflow_datasets"
    )
    args = parser.parse_args(arguments)
    if args.name.split("/")[0] not in known:
        parser.error(f"argument name: must be one of {', '.join(known)}, got {args.name}")
    directory = args.data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    directory = Path(directory).expanduser()

    import tensorflow_datasets as tfds

    try:
        tfds.builder(
            args.name, data_dir=directory, file_format="array_record"
        ).download_and_prepare()
    except Exception as e:
        print(
            f"{args.name} could not be prepared in {directory}: {type(e).__name__}: {e}",
            file=sys.stderr,
        )
        return 1
    sizes = {
        name: info.num_examples
        for name, info in builder_of(args.name, directory).info.splits.items()
    }
    print(f"{args.name} is prepared in {directory}: {sizes}")
    return 0
