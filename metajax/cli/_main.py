"""The command line: ``metajax demo``, ``train``, ``evaluate``, ``pretrained`` and ``data``.

Exit codes: 0, all is well; 1, a run failed; 2, a mistake in the command or the config; 130 and 143,
stopped by Ctrl-C and SIGTERM.
"""

import argparse
import inspect
import sys
from collections.abc import Sequence

import metajax as mx
from metajax._arguments import checked
from metajax.cli import _data, _demo, _evaluate, _pretrained, _train
from metajax.cli._toml import ConfigError

_COMMANDS = {
    "demo": _demo,
    "train": _train,
    "evaluate": _evaluate,
    "pretrained": _pretrained,
    "data": _data,
}
_EXAMPLES = """examples:
  metajax demo                              about three minutes
  metajax train examples/l2l-digits.toml    train what a file describes; the same again goes on
  metajax evaluate out/l2l-digits --plot curves.png
  metajax pretrained card vsml-mnist
  metajax data prepare mnist"""


@checked
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code."""
    args = _parser().parse_args(arguments)
    try:
        args.run(args)
    except ConfigError as e:
        print(f"metajax: {e}", file=sys.stderr)
        return 2
    except (FloatingPointError, ImportError, OSError, RuntimeError) as e:
        print(f"metajax: {type(e).__name__}: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as e:
        print(f"metajax: {str(e) or 'interrupted'}", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    """A command is a module: its docstring is the help, its first line the summary."""
    parser = argparse.ArgumentParser(
        "metajax",
        description=mx.__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version", action="version", version=f"metajax {mx.__version__}"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")
    for name, module in _COMMANDS.items():
        description = inspect.getdoc(module) or ""
        command = commands.add_parser(
            name,
            help=description.partition("\n")[0],
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser
