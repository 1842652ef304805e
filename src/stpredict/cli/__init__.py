"""The command line: the functions of `tl` over .zarr stores."""

from __future__ import annotations

import inspect
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable
from typing import Annotated, Any

from cyclopts import App, Parameter

import stpredict as stp
from stpredict.cli._benchmark import benchmark
from stpredict.cli._demo import demo
from stpredict.cli._doctor import doctor
from stpredict.cli._evaluate import evaluate
from stpredict.cli._models import models
from stpredict.cli._predict import predict
from stpredict.cli._report import report
from stpredict.cli._train import train
from stpredict.cli._view import view

ERRORS = (ValueError, OSError, ImportError, MemoryError, RuntimeError)  # what the package raises for users

app = App(
    name="stpredict",
    help=(
        "Spatially resolved gene expression from H&E images.\n\n"
        "Train on measured sections, predict others; every section is a SpatialData store (.zarr). Options have the "
        "meaning of the arguments of the same name in `stpredict.tl`. `stpredict COMMAND --help` lists them."
    ),
    version=lambda: stp.__version__,
    help_format="markdown",
    suppress_keyboard_interrupt=False,  # what it says of finished work is shown
)
COMMANDS: tuple[Callable[..., Any], ...] = (demo, train, predict, evaluate, report, view, benchmark, models, doctor)
for position, command in enumerate(COMMANDS):
    # by its path: what an option may be is looked up (and may load libraries) only when this command is asked for
    app.command(
        f"{command.__module__}:{command.__name__}",
        name=command.__name__,
        help=inspect.getdoc(command),
        sort_key=position,
    )


@app.meta.default
def _launch(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    debug: Annotated[bool, Parameter(negative="", help="Show the traceback of an error.")] = False,
) -> int | None:
    """Run one command; what goes wrong is one line on stderr, and status 1 (130 after Ctrl-C)."""
    try:
        return app(tokens, result_action="return_value")
    except BrokenPipeError:  # `stpredict models NAME | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except ERRORS as error:
        if debug:
            raise
        name = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        print(f"error: {name}{_said(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        if debug:
            raise
        print(f"interrupted. {_said(error)}".rstrip(), file=sys.stderr)
        return 130


def _said(error: BaseException) -> str:
    """The message with its notes, which say which store and what is safe, in one line, options for arguments."""
    message = " ".join(" ".join([str(error), *getattr(error, "__notes__", [])]).split())
    names = {name for command in COMMANDS for name in inspect.signature(command).parameters}
    for name in sorted(names, key=len, reverse=True):
        option = f"--{name.replace('_', '-')}"
        message = re.sub(rf"(?<![\w.'/-]){name}=True\b", option, message)
        message = re.sub(rf"(?<![\w.'/-]){name}=(?=[\w'\"\[])", f"{option} ", message)
        if "_" in name:
            message = re.sub(rf"(?<![\w.'/-]){name}=?(?![\w'/-])", option, message)
    return message


def main() -> None:
    """The program `stpredict`."""
    logger = logging.getLogger("stpredict")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    warnings.showwarning = _warn
    sys.exit(app.meta())


def _warn(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
    """One line for what concerns users; what libraries tell developers is shown only where PYTHONWARNINGS is set."""
    for_developers = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)
    if os.environ.get("PYTHONWARNINGS") or not issubclass(category, for_developers):
        print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)
