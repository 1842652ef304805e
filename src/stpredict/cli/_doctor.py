"""`stpredict doctor`: check the installation, and report what is missing or broken."""

from __future__ import annotations

import importlib
import logging
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import stpredict as stp
from stpredict._card import shipped
from stpredict._fetch import data_dir

GIB = 2**30
SETTINGS = ("HF_HUB_OFFLINE", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "STPREDICT_ALLOCATOR", "STPREDICT_DATA_DIR")


@dataclass(frozen=True)
class Finding:
    """One line of the report; `ok` is None where there is nothing to judge."""

    topic: str
    text: str
    ok: bool | None = None


def doctor() -> int:
    """Say what stpredict finds on this machine; status 1 if something that it needs is missing or broken."""
    findings = [*packages(), *extras(), *hardware(), *shipped_models()]
    topic = ""
    for finding in findings:
        if finding.topic != topic:
            topic = finding.topic
            print(topic)
        mark = {True: "ok  ", False: "FAIL", None: "    "}[finding.ok]
        print(f"  {mark} {finding.text}")
    wrong = sum(finding.ok is False for finding in findings)
    print(f"{wrong} problems" if wrong else "no problems")
    return int(wrong > 0)


def packages() -> Iterator[Finding]:
    """Python, stpredict, and every package that it requires, with the version that is installed."""
    yield Finding("Versions", f"Python {platform.python_version()} ({sys.executable})")
    yield Finding("Versions", f"stpredict {stp.__version__} ({Path(stp.__file__).parent})")
    yield Finding("Versions", platform.platform())
    for name, wanted in _required(extra=None):
        found = _version(name)
        text = f"{name} {found}" if found else f"{name} is not installed, {wanted or 'any version'} is needed"
        yield Finding("Versions", text, found is not None)


def extras() -> Iterator[Finding]:
    """The optional extras, and how to get those that are not there."""
    for extra in metadata.metadata("stpredict").get_all("Provides-Extra") or []:
        missing = [name for name, _ in _required(extra=extra) if _version(name) is None]
        if missing:
            hint = f"not installed (lacks {', '.join(missing)}): pip install 'stpredict[{extra}]'"
            yield Finding("Extras", f"{extra}: {hint}")
        else:
            yield Finding("Extras", f"{extra}: installed", True)


def hardware() -> Iterator[Finding]:
    """Devices and number formats by torch, threads, memory, disk, and the variables that matter."""
    yield from _torch()
    yield Finding("Machine", f"{os.cpu_count()} processors")
    yield Finding("Machine", _memory())
    yield Finding("Machine", f"{shutil.disk_usage('.').free / GIB:.1f} GiB disk free in {Path.cwd()}")
    yield Finding("Machine", f"downloads are kept in {data_dir()}")
    for name in SETTINGS:
        yield Finding("Machine", f"{name}={os.environ[name]}" if name in os.environ else f"{name} is not set")


def shipped_models() -> Iterator[Finding]:
    """Whether each trained model that comes with the package loads."""
    if not shipped():
        yield Finding("Models", "none comes with this version; train one with `stpredict train`")
    for name in shipped():
        try:
            model = stp.models.load(name)
        except (ValueError, OSError, ImportError) as error:
            yield Finding("Models", f"{name}: {' '.join(str(error).split())}", False)
        else:
            yield Finding("Models", f"{name}: {type(model).__name__}, {len(model.genes)} genes", True)


def _torch() -> Iterator[Finding]:
    try:
        torch, device = (importlib.import_module(name) for name in ("torch", "stpredict.nn.device"))
    except (ImportError, OSError) as error:
        yield Finding("Devices", f"torch cannot be imported: {' '.join(str(error).split())}", False)
        return
    names = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    names += ["mps"] * torch.backends.mps.is_available()
    with _unlogged():
        chosen = device.resolve_device("auto")
        formats = {name: device.resolve_precision("auto", torch.device(name)) for name in names}
    for name, precision in formats.items():
        about = torch.cuda.get_device_properties(name) if name.startswith("cuda") else None
        detail = f" ({about.name}, {about.total_memory / GIB:.0f} GiB)" if about else ""
        yield Finding("Devices", f"{name}{detail}: {'bf16' if precision == 'bf16-mixed' else 'float32, no bf16'}", True)
    yield Finding("Devices", f"device='auto' takes {chosen}; torch uses {torch.get_num_threads()} threads")


@contextmanager
def _unlogged() -> Iterator[None]:
    """Without the package's own notes: what "auto" chose stands in the report."""
    logger = logging.getLogger("stpredict")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _required(*, extra: str | None) -> Iterator[tuple[str, str]]:
    """Names and version limits of what stpredict requires, or of what one extra adds."""
    for line in metadata.requires("stpredict") or []:
        requirement, _, marker = line.partition(";")
        of_extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)['\"]", marker)
        if (of_extra[1] if of_extra else None) == extra:
            name = re.match(r"[A-Za-z0-9._-]+", requirement.strip())
            assert name is not None, line
            yield name[0], requirement.strip()[len(name[0]) :].strip()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _memory() -> str:
    try:
        import psutil
    except ImportError:  # named above among the packages
        return "memory: unknown without psutil"
    memory = psutil.virtual_memory()
    return f"{memory.total / GIB:.1f} GiB memory, {memory.available / GIB:.1f} GiB of it free"
