"""The tables of benchmarks/README.md by one command, of one commit; what is there is not made again.

    python benchmarks/all.py --list                                   # the tables, their commands and minutes
    python benchmarks/all.py --out results/all                        # all of them: many hours on two cores
    python benchmarks/all.py --out results/all --only patient mob     # some

A table is the Markdown that its script prints: OUT/NAME.md, which is there whole or not at all, with the script's own
results in OUT/NAME, its messages in OUT/NAME.log, and all tables one after the other in OUT/tables.md. A folder holds
tables of one commit: code that is not committed, a folder with other things in it, one of another commit, and a commit
during the work are refused. Not among them: what needs a GPU (`device.py`, `systems.py --full`) or an environment of
its own (`speed.py lazyslide`), earlier states of the code, and settings that were tried.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent


class Table(NamedTuple):
    """What makes a table.

    Parameters
    ----------
    heading : str
        Of benchmarks/README.md, where it stands.
    command : str
        After `python benchmarks/`; {out} is the folder of its results.
    minutes : float, optional
        On two cores, as measured, most of them beside other work (of "her2st" and "ensemble" the seconds of their own
        tables, of "genes-unseen" three minutes a run); None: not measured.
    """

    name: str
    heading: str
    command: str
    minutes: float | None


TABLES = (
    Table("her2st", "her2st, leave-one-section-out", "her2st.py --out {out}", 40),
    Table("patient", "Another patient", "patient.py", None),
    Table("pattern", "The decoder's own grid in its maps", "pattern.py --models pixnet-her2st --section C5", None),
    Table(
        "ensemble", "An ensemble: its spread, its errors, and what its intervals hold",
        "ensemble.py --epochs 4 --out {out}", 24,
    ),
    Table("domain", "What a model does not know", "domain.py", None),
    Table("tries", "The same tries for all", "tries.py --out {out}", None),
    Table("systems", "her2st C2..C5, leave-one-section-out", "systems.py her2st --out {out}", None),
    Table("systems-patient", "her2st A1, trained on C2..C5", "systems.py patient --out {out}", None),
    Table("colon", "Mouse colon, three folds of spatial blocks of one section", "systems.py colon --out {out}", None),
    Table("mob", "Mouse olfactory bulb, each of two replicates from the other", "systems.py mob --out {out}", None),
    Table("ceiling", "The ceiling, where the truth is known", "ceiling.py", None),
    Table("genes-seen", "Genes by text", "genequery.py seen --out {out}", None),
    Table("genes-unseen", "Genes by text", "genequery.py unseen --out {out}", 108),
    Table("genes-speed", "Prediction", "genequery_speed.py", None),
    Table("scales", "Several scales together", "scales.py", 4),
    Table("counts-toy", "A map of counts", "counts.py toy --out {out}", 5),
    Table("counts-toy-24", "A map of counts", "counts.py toy --epochs 24 --out {out}", None),
    Table("counts-scales", "A map of counts", "counts.py scales --out {out}", 4),
    Table("counts-scales-30", "A map of counts", "counts.py scales --epochs 30 --out {out}", 8),
    Table("counts-same-epochs", "A map of counts", "counts.py scales --epochs 30 --same-epochs --out {out}", None),
    Table("counts-her2st", "A map of counts", "counts.py her2st --out {out}", None),
    Table("speed", "Speed and memory", "speed.py", None),
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Make what is asked for; the number of tables that failed."""
    names = [table.name for table in TABLES]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for the tables and all results")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--list", action="store_true", help="say what there is, and make nothing")
    args = parser.parse_args(arguments)
    wanted = [table for table in TABLES if table.name in args.only]
    if args.list:
        print(listed(wanted))
        return 0
    if args.out is None:
        parser.error("--out: which folder do the tables go to? (--list says which there are)")
    now = commit()
    check_folder(args.out, now)
    failed = []
    for table in wanted:
        if not made(table, args.out):
            failed.append(table.name)
        elif commit() != now:
            (args.out / f"{table.name}.md").unlink()
            raise ValueError(f"{table.name}: the code was changed while it was made, from {now} to {commit()}.")
        (args.out / "tables.md").write_text("\n".join(shown(args.out)))
    if failed:
        print(f"failed: {', '.join(failed)}; see their .log in {args.out}. The same command makes them again.")
    return len(failed)


def listed(tables: Sequence[Table]) -> str:
    """The tables, their commands and minutes, as Markdown."""
    lines = ["| table | command | minutes on 2 cores |", "|---|---|---|"]
    for table in tables:
        minutes = "not measured" if table.minutes is None else f"{table.minutes:g}"
        lines.append(f"| {table.name} | `python benchmarks/{table.command.format(out='OUT')}` | {minutes} |")
    return "\n".join(lines)


def commit() -> str:
    """The commit of this checkout.

    Raises
    ------
    ValueError
        Where code that tables are made by is not committed, or in no repository.
    """
    try:
        changed = _git("status", "--porcelain", "--", "src", "benchmarks/*.py", "pyproject.toml")
    except (OSError, subprocess.CalledProcessError) as error:
        raise ValueError(f"{HERE.parent} is no git checkout, so that a table would be of no commit.") from error
    if changed:
        raise ValueError(f"a table is of a commit, and this is not committed:\n{changed}")
    return _git("rev-parse", "HEAD")


def _git(*command: str) -> str:
    return subprocess.run(["git", *command], cwd=HERE.parent, check=True, capture_output=True, text=True).stdout.strip()


def check_folder(out: Path, now: str) -> None:
    """Note the commit in a new folder.

    Raises
    ------
    ValueError
        Where the folder is of another commit, or holds what was not made here, which scripts would go on from.
    """
    note = out / "commit.txt"
    if not note.is_file():
        if out.is_dir() and any(out.iterdir()):
            raise ValueError(f"{out} holds results whose commit is not known: pass another --out.")
        out.mkdir(parents=True, exist_ok=True)
        note.write_text(now)
    if note.read_text() != now:
        raise ValueError(f"{out} has tables of commit {note.read_text()}, and this is {now}: pass another --out.")


def made(table: Table, out: Path) -> bool:
    """Whether there is such a table; it is made first where there is none."""
    done, part = out / f"{table.name}.md", out / f"{table.name}.part"
    if done.is_file():
        print(f"{table.name}: is there", flush=True)
        return True
    script, *rest = (part.format(out=out / table.name) for part in table.command.split())
    print(f"{table.name}: {script} {' '.join(rest)}", flush=True)
    start = time.perf_counter()
    with part.open("w") as printed, (out / f"{table.name}.log").open("w") as log:
        code = subprocess.run([sys.executable, str(HERE / script), *rest], stdout=printed, stderr=log).returncode
    minutes = (time.perf_counter() - start) / 60
    print(f"{table.name}: {'made' if code == 0 else f'failed with {code}'} in {minutes:.1f} minutes", flush=True)
    if code == 0:
        os.replace(part, done)
    return code == 0


def shown(out: Path) -> list[str]:
    """All tables that are there, in the order of the page, under their names."""
    there = [table for table in TABLES if (out / f"{table.name}.md").is_file()]
    return [
        f"## {table.name}\n\n`python benchmarks/{table.command.format(out='OUT')}`\n\n"
        + (out / f"{table.name}.md").read_text()
        for table in there
    ]


if __name__ == "__main__":
    sys.exit(main())
