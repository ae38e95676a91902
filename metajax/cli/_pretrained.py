"""Show and export meta-trained parameters of the package.

Examples:
  metajax pretrained
  metajax pretrained card l2l-digits
  metajax pretrained export l2l-digits l2l.safetensors
"""

import argparse

import metajax as mx
from metajax.cli import _arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what the command takes."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    actions.add_parser("list", help="the names; so does the command alone")
    card = actions.add_parser(
        "card", help="what a set was trained on, what it reached, where it fails"
    )
    export = actions.add_parser("export", help="write a set to a file")
    for action in (card, export):
        action.add_argument("name", metavar="NAME", choices=mx.pretrained.list())
    export.add_argument(
        "file",
        type=_arguments.file_ending_in(".npz", ".safetensors"),
        metavar="FILE",
        help="ends in .npz or .safetensors",
    )


def run(args: argparse.Namespace) -> None:
    """Lists all sets, shows the card of one, or writes it to a file."""
    if args.action == "card":
        print(mx.pretrained.card(args.name))
    elif args.action == "export":
        mx.save(args.file, mx.pretrained.params(args.name))
        print(f"{args.name} is in {args.file}")
    else:
        print("\n".join(mx.pretrained.list()))
