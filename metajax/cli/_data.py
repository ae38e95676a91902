"""Download and prepare data sets: metajax data prepare NAME."""

import argparse

from metajax.cli import _arguments
from metajax.data import NAMES
from metajax.data._prepared import builder_of, tfds_directory

_NAMES = [name for name in NAMES if name != "digits"]  # which comes with the package


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what the command takes."""
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    description = "Download and prepare a data set with tensorflow_datasets."
    prepare = actions.add_parser("prepare", help=description, description=description)
    prepare.add_argument(
        "name",
        type=_name,
        help=f"{', '.join(_NAMES)}; with a configuration, where a set has several: emnist/letters",
    )
    prepare.add_argument(
        "--data_dir",
        type=_arguments.path,
        help="default: $TFDS_DATA_DIR, else ~/tensorflow_datasets",
    )


def run(args: argparse.Namespace) -> None:
    """Prepares a set in array_record, a format with random access."""
    # Imported here: a third of a second that other commands need not spend.
    import tensorflow_datasets as tfds

    folder = tfds_directory(args.data_dir)
    try:
        builder = tfds.builder(args.name, data_dir=folder, file_format="array_record")
        builder.download_and_prepare()
    except Exception as e:
        reason = f"{type(e).__name__}: {e}"
        raise RuntimeError(
            f"{args.name} could not be prepared in {folder}: {reason}"
        ) from e

    splits = builder_of(args.name, folder).info.splits
    sizes = {name: split.num_examples for name, split in splits.items()}
    print(f"{args.name} is prepared in {folder}: {sizes}")


def _name(text: str) -> str:
    if text.split("/")[0] not in _NAMES:
        raise argparse.ArgumentTypeError(
            f"must be one of {', '.join(_NAMES)}, got {text}"
        )
    return text
