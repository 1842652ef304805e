"""Run parts of the device benchmark in this process, one after the other, and write each one's result as it ends.

`device.py` starts it; a part that fails ends the process, so that the next begins on a device that nothing has upset.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import importlib.metadata
import json
import os
import platform
import sys
import tempfile
import time
import tomllib
import traceback
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parent / "src"
LAST_LINES = 6


def write(path: Path, content: Any) -> None:
    """JSON, whole or not at all."""
    aside = path.with_suffix(".part")
    aside.write_text(json.dumps(content, indent=1))
    os.replace(aside, path)


def as_if_installed(folder: Path) -> None:
    """Let the package be found in the repository, and its version, where it is not installed."""
    sys.path.insert(0, str(SOURCE))
    try:
        importlib.metadata.version("stpredict")
    except importlib.metadata.PackageNotFoundError:
        version = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]["version"]
        info = folder / f"stpredict-{version}.dist-info"
        info.mkdir(parents=True, exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: stpredict\nVersion: {version}\n")
        sys.path.append(str(folder))


def machine(device: str) -> dict[str, str]:
    """What the figures are of."""
    import torch

    found = {"device": platform.processor() or platform.machine(), "processors": str(os.cpu_count())}
    if device.startswith("cuda"):
        card = torch.cuda.get_device_properties(device)
        found |= {
            "device": card.name,
            "memory": f"{card.total_memory / 2**30:.0f} GiB",
            "cuda": str(torch.version.cuda),
        }
    return found | {"torch": torch.__version__, "python": platform.python_version()}


def run(name: str, device: str, *, small: bool) -> dict[str, Any]:
    """The result of one part: its rows, or why it was skipped, or the last lines of its error."""
    from _device_parts import PARTS, Setting, Skipped

    start, result = time.perf_counter(), {"rows": []}
    with tempfile.TemporaryDirectory() as folder:
        try:
            rows = PARTS[name].function(name)(Setting(device, small, Path(folder)))
            result |= {"state": "ran", "rows": [dataclasses.asdict(row) for row in rows]}
        except Skipped as reason:
            result |= {"state": "skipped", "reason": str(reason)}
        except Exception:  # noqa: BLE001 (whatever it is, it stands in the table)
            lines = traceback.format_exc().strip().splitlines()
            result |= {"state": "failed", "reason": "\n".join(lines[-LAST_LINES:])}
    return result | {"seconds": round(time.perf_counter() - start, 2)}


def tidy(device: str) -> None:
    """Give memory back between parts."""
    gc.collect()
    if device.startswith("cuda"):
        import torch

        torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*")
    parser.add_argument("--device", required=True)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--results", type=Path, help="folder for one file a part")
    parser.add_argument("--answers", type=Path, help="write what two processes predict at once, and end")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        as_if_installed(Path(folder))
        if args.answers is not None:
            import numpy as np
            from _device_right import answers

            print("ready", flush=True)
            np.save(args.answers, answers(args.device))
            return
        write(args.results / "machine.json", machine(args.device))
        for name in args.parts:
            write(args.results / f"{name}.begun.json", {})
            result = run(name, args.device, small=args.small)
            write(args.results / f"{name}.json", result)
            if result["state"] == "failed":
                raise SystemExit(1)
            tidy(args.device)


if __name__ == "__main__":
    main()
