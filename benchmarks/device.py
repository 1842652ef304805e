"""Whether the package is right and fast on a CUDA device: one command that needs the repository and nothing else.

    python benchmarks/device.py --device cuda --wheels wheels --out results     # at most 8 minutes
    python benchmarks/device.py --device cpu --small --out results              # every part once, at its smallest size

Parts run one after the other in a process of their own, which goes on to the next part as long as all is well: one that
fails, crashes or takes longer than its limit ends it, stands in the table with the last lines of its error, and the
next begins in a fresh process. `results.json` and `results.md` are written anew after every part. Slides, sections,
texts and, but for the shipped model, weights are simulated. Ends with 0 when nothing failed, 1 when something did or
is not as wanted, 2 when it could not begin.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _device_parts import FAST, PARTS, RIGHT, SMALL_SECONDS, START_SECONDS
from _device_run import LAST_LINES, write
from device_wheels import BELOW, DOOR, named

LIMIT = 480.0  # seconds in all
LEAST = 5.0  # seconds of the budget below which no part begins


def problem(message: str) -> SystemExit:
    """The end of a run that could not begin."""
    print(f"device.py: {message}", file=sys.stderr)
    return SystemExit(2)


def packages(wheels: Path | None, site: Path) -> list[str]:
    """Install what is missing from a folder of wheels, and return what is missing still at SpatialData's door.

    Raises SystemExit where not even predictions below it can run.
    """
    missing = [name for name, module in (BELOW | DOOR).items() if importlib.util.find_spec(module) is None]
    held = {named(each): each for each in (wheels.glob("*.whl") if wheels is not None else ())}
    if found := [str(held[name]) for name in missing if name in held]:
        command = ["pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile", f"--target={site}", *found]
        done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, check=False)
        if done.returncode:
            raise problem(f"pip could not install the wheels of {wheels}: {done.stderr.strip()[-500:]}")
    still = [name for name in missing if name not in held]
    if below := [name for name in still if name in BELOW]:
        where = "no folder of wheels was given (--wheels)" if wheels is None else f"{wheels} has no wheel of them"
        raise problem(f"missing packages: {', '.join(below)}; {where}. benchmarks/device_wheels.py makes one.")
    if still:
        print(f"missing at SpatialData's door, going on below it: {', '.join(still)}", flush=True)
    return still


def check_device(device: str, environment: dict[str, str]) -> None:
    """Raises SystemExit where a CUDA device is asked for that is not there."""
    if not device.startswith("cuda"):
        return
    ask = (
        "import sys, torch; n = torch.cuda.device_count(); found = (torch.device(sys.argv[1]).index or 0) < n; "
        "built = f'torch {torch.__version__}, built for CUDA {torch.version.cuda}'; "
        "sys.exit(0 if found else f'{built}, finds {n} of them')"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ask, device],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:] or ["torch cannot be imported"]
        raise problem(f"--device {device}, but there is no such CUDA device: {said[0]}. Use --device cpu --small.")


def stop(process: subprocess.Popen) -> None:
    """End a process and those that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


class Run:
    """One run: which parts are left, what came of the others, and how much time there is."""

    def __init__(self, args: argparse.Namespace, environment: dict[str, str], missing: Sequence[str]) -> None:
        self.args, self.environment = args, environment
        self.out: Path = args.out
        self.results: dict[str, dict[str, Any]] = {}
        self.start = time.monotonic()
        chosen = args.parts or list(PARTS)
        for name in chosen:
            if PARTS[name].door and missing:
                self.note(name, "skipped", f"missing packages: {', '.join(missing)}")
        self.waiting = [name for name in chosen if name not in self.results]
        self.chosen = chosen

    def left(self) -> float:
        """Seconds of the budget that are left."""
        return self.args.limit - (time.monotonic() - self.start)

    def note(self, name: str, state: str, reason: str, seconds: float | None = None) -> None:
        """What became of a part that wrote no result itself."""
        self.results[name] = {"state": state, "reason": reason, "rows": [], "seconds": seconds}

    def go(self) -> None:
        """All parts, as many as the budget allows."""
        while self.waiting:
            if self.left() < LEAST:
                for name in self.waiting:
                    self.note(name, "not run", f"the {self.args.limit:.0f} s of the whole run were over")
                self.waiting = []
                break
            group = self._together()
            self._process(group)
        self.write()

    def _together(self) -> list[str]:
        """The next parts that one process may do: on a card some want one for themselves."""
        group: list[str] = []
        for name in self.waiting:
            alone = PARTS[name].alone and self.args.device.startswith("cuda")
            if not alone or not group:
                group.append(name)
            if alone:
                break
        return group

    def _process(self, group: list[str]) -> None:
        """Run some parts in one process until they are done or one of them is not well."""
        with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as errors:
            command = [sys.executable, str(Path(__file__).with_name("_device_run.py")), *group]
            command += ["--device", self.args.device, "--results", folder, *(["--small"] if self.args.small else [])]
            process = subprocess.Popen(
                command, env=self.environment, stdout=errors, stderr=errors, start_new_session=True
            )
            try:
                over = self._watch(process, group, Path(folder))
            finally:
                stop(process)
            errors.seek(0)
            said = errors.read().decode(errors="replace").strip().splitlines()
            self._settle(group, over, process.returncode, said)

    def _watch(self, process: subprocess.Popen, group: list[str], folder: Path) -> str:
        """Take over results as they come; returns why the process was stopped, or nothing."""
        begun: dict[str, float] = {}
        last = time.monotonic()  # when the process began, or a part of it ended
        while True:
            ended = process.poll() is not None
            for name in group:
                if name not in begun and (folder / f"{name}.begun.json").is_file():
                    begun[name] = time.monotonic()
                if name not in self.results and (folder / f"{name}.json").is_file():
                    self.results[name] = json.loads((folder / f"{name}.json").read_text())
                    last = time.monotonic()
                    self._tell(name, folder)
            if ended:
                return ""
            current = next((name for name in group if name not in self.results), group[-1])
            limit = self._limit(current, begun=current in begun)
            if time.monotonic() - begun.get(current, last) > limit:
                return f"took longer than its limit of {limit:.0f} s"
            if self.left() <= 0:
                return f"the {self.args.limit:.0f} s of the whole run were over"
            time.sleep(0.05)

    def _limit(self, name: str, *, begun: bool) -> float:
        """Seconds that a part may take, or its process to come to it."""
        part = SMALL_SECONDS if self.args.small else PARTS[name].seconds
        return part if begun else max(START_SECONDS, part)

    def _settle(self, group: list[str], over: str, code: int, said: list[str]) -> None:
        """Whom the end of the process befell, and who waits still."""
        unfinished = [name for name in group if name not in self.results]
        if unfinished and not any(self.results.get(name, {}).get("state") == "failed" for name in group):
            last = "\n".join(said[-LAST_LINES:])
            self.note(unfinished[0], "failed", over or f"its process ended with {code}: {last}")
            self._tell(unfinished[0], None)
        self.waiting = [name for name in self.waiting if name not in self.results]

    def _tell(self, name: str, folder: Path | None) -> None:
        if folder is not None and (folder / "machine.json").is_file():
            self.machine = json.loads((folder / "machine.json").read_text())
        result = self.results[name]
        seconds = "" if result["seconds"] is None else f" in {result['seconds']:.1f} s"
        print(f"{name}: {result['state']}{seconds}", flush=True)
        self.write()

    machine: dict[str, str] = {}

    def write(self) -> None:
        """Both tables as they stand."""
        content = {
            "machine": self.machine, "small": self.args.small, "asked": self.args.device,
            "seconds": round(time.monotonic() - self.start, 1),
            "parts": {name: self.results[name] for name in self.chosen if name in self.results},
        }  # fmt: skip
        write(self.out / "results.json", content)
        aside = self.out / "results.md.part"
        aside.write_text(markdown(content))
        os.replace(aside, self.out / "results.md")


def markdown(content: dict[str, Any]) -> str:
    """The tables of a run."""
    about = ", ".join(f"{key} {value}" for key, value in content["machine"].items())
    lines = [f"# {about or content['asked']}", "", f"{content['seconds']:.0f} s in all."]
    if content["small"]:
        lines += ["", "Smallest sizes: this shows that the command works, and nothing about speed."]
    for kind, title in ((RIGHT, "Right"), (FAST, "Fast")):
        lines += ["", f"## {title}", "", "| | | is | wanted | holds |", "|---|---|---|---|---|"]
        for name, result in content["parts"].items():
            if PARTS[name].kind == kind:
                lines += [_line(PARTS[name].title, row) for row in result["rows"]]
                if result["state"] != "ran":
                    reason = result["reason"].replace("|", "\\|").replace("\n", "<br>")
                    lines.append(f"| {PARTS[name].title} | {result['state']} | {reason} | | |")
    return "\n".join(lines) + "\n"


def _line(title: str, row: dict[str, Any]) -> str:
    value = f"{row['value']:.4g}" if isinstance(row["value"], float) else str(row["value"])
    holds = {True: "yes", False: "**no**", None: ""}[row["ok"]]
    what, value = (each.replace("|", "\\|") for each in (row["what"], f"{value} {row['unit']}".strip()))
    return f"| {title} | {what} | {value} | {row['goal']} | {holds} |"


def failed(results: dict[str, dict[str, Any]]) -> list[str]:
    """Parts that failed or have a row that does not hold."""
    return [
        name
        for name, result in results.items()
        if result["state"] == "failed" or any(row["ok"] is False for row in result["rows"])
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", required=True, help="cuda, cuda:1, or cpu")
    parser.add_argument("--small", action="store_true", help="smallest sizes: shows that the command works")
    parser.add_argument("--wheels", type=Path, help="folder that device_wheels.py made; what is installed is not taken")
    parser.add_argument("--out", type=Path, default=Path("device-results"))
    parser.add_argument("--parts", nargs="+", choices=PARTS, metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds in all (default: 480)")
    args = parser.parse_args()
    if args.wheels is not None and not args.wheels.is_dir():
        raise problem(f"--wheels {args.wheels} is no folder. benchmarks/device_wheels.py makes one.")
    args.out.mkdir(parents=True, exist_ok=True)
    site = Path(tempfile.mkdtemp(prefix="stpredict-site-"))
    try:
        missing = packages(args.wheels, site)
        paths = [str(site), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}
        check_device(args.device, environment)
        run = Run(args, environment, missing)
        run.go()
    finally:
        shutil.rmtree(site, ignore_errors=True)
    print((args.out / "results.md").read_text())
    if bad := failed(run.results):
        print(f"failed, or not as wanted: {', '.join(bad)}", file=sys.stderr)
        raise SystemExit(1)


if __name__ == "__main__":
    main()
