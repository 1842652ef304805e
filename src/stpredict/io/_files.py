"""Files that other libraries read: whatever they raise for a damaged one becomes an error that names it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stpredict._messages import UnreadableFile


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raise UnreadableFile naming the file or folder, in place of an error of another kind or without that name."""
    try:
        yield
    except (ImportError, MemoryError, Warning, UnreadableFile):
        raise
    except Exception as error:
        if isinstance(error, ValueError | OSError) and _is_named(path, str(error)):
            raise
        if isinstance(error, OSError) and error.errno is not None:  # of the system, such as a disk that is full
            error.add_note(f"while reading {path}")
            raise
        said = " ".join(str(error).split())[:300]
        raise UnreadableFile(
            f"{path} cannot be read ({type(error).__name__}: {said}). It may be damaged, cut short on its way here, or "
            "of another kind or version than its name says: copy it anew. Where it is whole, the installed libraries "
            "may not fit together: see stpredict doctor."
        ) from error


def _is_named(path: Path, said: str) -> bool:
    """Whether a message names a path; a short relative one, such as ".", is in many that do not."""
    return str(path.resolve()) in said or (len(str(path)) > 3 and str(path) in said)


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; ValueError naming the file where it holds something else."""
    with reading(path):
        found = json.loads(path.read_bytes())  # NaN, too: some metadata have it
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold a JSON object, but holds a {type(found).__name__}; copy it anew.")
    return found
