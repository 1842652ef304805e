"""`stpredict benchmark`: train and score several models on the same sections under one protocol."""

from __future__ import annotations

import difflib
import inspect
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

import stpredict as stp
from stpredict.cli._options import RESULT, Device, Precision, Progress, checked, gene_names

if TYPE_CHECKING:
    from stpredict.models import Model

OWN = ("stores", "out", "models")  # keys of the plan that are not arguments of tl.benchmark
EXAMPLE = """\
stores = ["C2.zarr", "C3.zarr", "C4.zarr"]   # beside the plan, or absolute
out = "results"
cv = "leave-one-section-out"                 # "blocks", a number of folds, or a table: [cv] name = [[train], [test]]
groups = ["patient 1", "patient 2", "patient 3"]
n_genes = 250

[models.Ridge]                               # the name in tables; the first is what others are compared with
class = "Ridge"

[models.PixNet]
class = "PixNet"                             # any class of stp.models; its arguments follow
encoder_weights = "mobilenetv2.safetensors"
"""


def benchmark(
    plan: Annotated[Path, Parameter(help="A TOML file: stores, out, [models.NAME], and arguments of tl.benchmark.")],
    /,
    *,
    out: Annotated[
        Path | None, Parameter(group=RESULT, help="Folder for results. Default: what the plan says.")
    ] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    progress: Progress = True,
) -> None:
    """Train and score several models on the same sections under one protocol.

    What is run stands in a file, so that a table can be made again. Results of every finished run are kept in the
    folder `out` at once: the same command goes on after an interruption. Prints tables in Markdown, and writes
    `scores.csv` (a row a model, fold, gene and metric) and `protocol.json`.
    """
    settings, arguments = _read(plan)
    folder = plan.parent / settings["out"] if out is None else out
    models = {name: _builder(name, dict(of), plan.parent) for name, of in settings["models"].items()}
    result = stp.tl.benchmark(
        checked([plan.parent / store for store in settings["stores"]]),
        models,
        path=folder,
        device=device,
        precision=precision,
        progress=progress,
        **arguments,
    )
    file = folder / "scores.csv"
    result.to_csv(file, index=False)
    for table in (stp.tables.scores(result), *_compared(result), stp.tables.cost(result)):
        print(stp.tables.markdown(table), end="\n\n")
    failed = result.dropna(subset="error")
    for _, row in failed.iterrows():
        print(f"failed: {row['model']}, fold {row['fold']}, seed {row['seed']:.0f}: {row['error']}")
    print(f"protocol {result.attrs['protocol']['protocol']}; scores of every gene: {file}")
    if len(failed):
        raise SystemExit(1)


def _compared(result: Any) -> list[Any]:
    scored = set(result.loc[result["metric"] == "pcc", "model"]) - {"ceiling", "log depth"}
    if len(scored) < 2:
        return []
    try:
        return [stp.tables.differences(result)]
    except ValueError as error:
        print(f"no paired differences: {error}\n")
        return []


def _read(plan: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the plan says of its own keys, and the arguments of tl.benchmark."""
    if not plan.is_file():
        raise ValueError(f"there is no plan {str(plan)!r}. A plan looks like this:\n{EXAMPLE}")
    try:
        settings = tomllib.loads(plan.read_text())
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{plan} is no TOML: {error}") from error
    arguments = {key: value for key, value in settings.items() if key not in OWN}
    known = set(inspect.signature(stp.tl.benchmark).parameters) - {"sdatas", "models", "path", "progress", "device"}
    missing = [key for key in (*OWN, "cv") if key not in settings]
    unknown = sorted(set(arguments) - known)
    if missing or unknown:
        what = f"lacks {missing}" if missing else f"has unknown keys {unknown}; there are {sorted(known)}"
        raise ValueError(f"{plan} {what}. A plan looks like this:\n{EXAMPLE}")
    if "groups" not in arguments:
        arguments["groups"] = None
        if "groups_reason" not in arguments and arguments["cv"] != "blocks":
            raise ValueError(
                f"{plan} says no patients: write groups = [one name a store], so that a patient's sections stay "
                'together, or groups_reason = "..." with why they cannot be told apart.'
            )
    if isinstance(arguments.get("genes"), str):
        arguments["genes"] = gene_names([str(plan.parent / arguments["genes"])])
    return settings, arguments


def _builder(name: str, of: dict[str, Any], folder: Path) -> Callable[[Sequence[str]], Model]:
    """A function of the panel that builds what [models.NAME] says; files are looked for beside the plan."""
    kind = of.pop("class", None)
    known = sorted(stp.models.list_models(trained=False)["name"])
    if kind not in known:
        close = difflib.get_close_matches(str(kind).lower(), [k.lower() for k in known], n=1)
        hint = f" Do you mean {next(k for k in known if k.lower() == close[0])!r}?" if close else ""
        raise ValueError(f"[models.{name}] needs class = one of {known}, got {kind!r}.{hint}")
    made: Any = getattr(stp.models, kind)
    takes = set(inspect.signature(made).parameters) - {"genes"}
    if unknown := sorted(set(of) - takes):
        raise ValueError(f"[models.{name}]: {kind} has no argument {unknown}; it has {sorted(takes)}.")
    for key in ("encoder_weights", "feature_cache"):
        if key in of and (folder / of[key]).exists():
            of[key] = folder / of[key]
    if "embeddings" in of:
        of["embeddings"] = stp.tl.GeneEmbeddings.load(folder / of["embeddings"])

    def build(genes: Sequence[str]) -> Model:
        return made(genes, **of)

    return build
