"""`stpredict train`: train a model on measured sections, and save it."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

import stpredict as stp
from stpredict._card import card_file
from stpredict.cli._options import (
    DATA,
    MODEL,
    RESULT,
    RUN,
    Device,
    Genes,
    ImageKey,
    ImageMpp,
    Layer,
    MinCounts,
    Precision,
    Progress,
    Stores,
    TissueKey,
    checked,
    gene_names,
    of_verb,
    shown,
)

if TYPE_CHECKING:
    import pandas as pd

    from stpredict.models import Model

    ModelName = str
else:  # each model stands in a file of its own name; none is opened to know what there is
    ModelName = Literal[tuple(m.name for m in pkgutil.iter_modules(stp.models.__path__) if not m.name.startswith("_"))]

N_GENES = 250
TAIL = 5  # epochs of the history that are printed


def several(name: str) -> Parameter:
    """An option of `tl.train` that takes one name, or one for each of several sections of a store."""
    return of_verb("tl.train", name, group=DATA, consume_multiple=True, negative=())


def train(
    stores: Stores,
    /,
    *,
    out: Annotated[Path, Parameter(group=RESULT, help="Folder for the trained model: model.safetensors, card.json.")],
    overwrite: Annotated[bool, Parameter(group=RESULT, help="Replace a model in `--out`.", negative="")] = False,
    licence: Annotated[str, of_verb("tl.train", "licence", group=RESULT)] = "not stated",
    model: Annotated[ModelName, Parameter(group=MODEL, help="What is trained.")] = "pixnet",
    n_genes: Annotated[int, of_verb("pp.gene_panel", "n_genes", group=MODEL)] = N_GENES,
    by: Annotated[Literal["mean", "hvg_union"], of_verb("pp.gene_panel", "by", group=MODEL)] = "mean",
    min_spots: Annotated[int | None, of_verb("pp.gene_panel", "min_spots", group=MODEL)] = None,
    genes: Genes = None,
    config: Annotated[Literal["small", "published"], Parameter(group=MODEL, help="Which configuration.")] = "small",
    encoder: Annotated[str | None, Parameter(group=MODEL, help="Image encoder, by its timm or hub name.")] = None,
    encoder_weights: Annotated[
        str | None,
        Parameter(
            group=MODEL,
            help="Where the encoder starts: a .safetensors file of timm, `timm` for what timm fetches, or for PixNet a "
            "trained one by name or folder (its decoder too). Default: random.",
        ),
    ] = None,
    embeddings: Annotated[
        Path | None,
        Parameter(group=MODEL, help="Gene embeddings, as tl.embed_genes writes them, for models that answer by text."),
    ] = None,
    model_mpp: Annotated[
        float | None, Parameter(group=MODEL, help="Micrometres per pixel at which the model sees. Default: its own.")
    ] = None,
    val: Annotated[
        list[str] | None,
        Parameter(
            group=DATA,
            help="Validation: the share of each section that is held out (0: none), or stores. Default: 0.15.",
            consume_multiple=True,
            negative=(),
        ),
    ] = None,
    target: Annotated[Literal["log1p_cp10k", "as_is"], of_verb("tl.train", "target", group=DATA)] = "log1p_cp10k",
    image_key: ImageKey = None,
    shapes_key: Annotated[list[str] | None, several("shapes_key")] = None,
    table_name: Annotated[list[str] | None, several("table_name")] = None,
    layer: Layer = None,
    mpp: ImageMpp = None,
    tissue_key: TissueKey = None,
    min_counts: MinCounts = None,
    max_epochs: Annotated[int | None, of_verb("tl.train", "max_epochs", group=RUN)] = None,
    batch_size: Annotated[int | None, of_verb("tl.train", "batch_size", group=RUN)] = None,
    lr: Annotated[float | None, of_verb("tl.train", "lr", group=RUN)] = None,
    seed: Annotated[int, Parameter(group=RUN, help="Of weights, windows and held-out blocks.")] = 0,
    device: Device = "auto",
    precision: Precision = "auto",
    devices: Annotated[int, of_verb("tl.train", "devices", group=RUN)] = 1,
    strategy: Annotated[str, Parameter(group=RUN, help="Lightning's strategy, such as ddp.")] = "auto",
    num_nodes: Annotated[int, of_verb("tl.train", "num_nodes", group=RUN)] = 1,
    checkpoint_dir: Annotated[Path | None, of_verb("tl.train", "checkpoint_dir", group=RUN)] = None,
    resume: Annotated[bool, of_verb("tl.train", "resume", group=RUN, negative="")] = False,
    progress: Progress = True,
) -> None:
    """Train a model on measured sections, and save it.

    Each store needs an H&E image, shapes, and a table of raw counts that annotates them. The gene panel is chosen from
    these stores alone, unless `--genes` names it.
    """
    if card_file(out).exists() and not overwrite:
        raise FileExistsError(f"{out} holds a model already. Pass another --out, or --overwrite to replace it.")
    start = {
        "config": config, "encoder": encoder, "encoder_weights": encoder_weights, "mpp": model_mpp,
        "embeddings": embeddings,
    }  # fmt: skip
    check_start(model, start)
    where: dict[str, Any] = {"image_key": image_key, "shapes_key": one_or_all(shapes_key), "layer": layer}
    where |= {"table_name": one_or_all(table_name) or "table"}
    where |= {"target": target, "tissue_key": tissue_key, "min_counts": min_counts}
    sdatas, held = checked(stores), validation(val)
    names = gene_names(genes)
    panel = names or stp.pp.gene_panel(sdatas, n_genes=n_genes, by=by, min_spots=min_spots, **where)
    fresh = build(model, panel, seed=seed, **start)
    history = stp.tl.train(
        sdatas, fresh, val=held, mpp=mpp, max_epochs=max_epochs, batch_size=batch_size, lr=lr, seed=seed,
        device=device, precision=precision, devices=devices, strategy=strategy, num_nodes=num_nodes,
        checkpoint_dir=checkpoint_dir, resume=resume, progress=progress, licence=licence, **where,
    )  # fmt: skip
    fresh.save(out, overwrite=overwrite)
    print(report(fresh, history))
    print(f"model: {out}")


def one_or_all(names: list[str] | None) -> str | list[str] | None:
    """A single name as itself, several as a list."""
    return names[0] if names is not None and len(names) == 1 else names


def class_of(model: str) -> type[Model]:
    """The class of a model by the name that `--model` takes."""
    names = stp.models.list_models(trained=False)["name"]
    return next(getattr(stp.models, name) for name in names if name.lower() == model)


def check_start(model: str, start: Mapping[str, Any]) -> None:
    """Check that a model takes the options that it is given, and is given the embeddings that it needs.

    Raises
    ------
    ValueError
        Naming the options and the model.
    """
    kind = class_of(model)
    takes = inspect.signature(kind).parameters
    given = [key for key, value in start.items() if value not in (None, "small")]
    unknown = [key for key in given if key not in takes]
    if "config" in given and "str" not in str(takes["config"].annotation):
        unknown.append("config")  # it has one configuration
    if unknown:
        options = ", ".join(f"--{key.replace('_', '-')}" for key in unknown)
        raise ValueError(f"{options}: --model {model} has no such choice; leave it out, or use another --model.")
    info = kind.info
    if info is not None and info.text_queried == "yes" and start.get("embeddings") is None:
        raise ValueError(
            f"--model {model} answers by the text of genes: pass --embeddings FILE, which stp.tl.embed_genes writes of "
            "the texts of stp.pp.describe_genes."
        )


def build(model: str, panel: Sequence[str], *, seed: int, **start: Any) -> Model:
    """A fresh model; the same seed gives the same weights.

    Parameters
    ----------
    model
        As `--model` takes it.
    panel
        Ordered genes.
    seed
        Of the first weights, where the model draws any.
    start
        Further arguments of its constructor, as far as it has them; None: left to it.
    """
    made: Any = class_of(model)
    takes = inspect.signature(made).parameters
    given = {"seed": seed} | {key: value for key, value in start.items() if value is not None}
    if model == "pixnet" and "embeddings" in given:
        given["head"] = "text"
    if "config" in given and "str" not in str(takes["config"].annotation):
        del given["config"]  # the only one
    return made(panel, **{key: value for key, value in given.items() if key in takes})


def validation(val: Sequence[str] | None) -> float | list[Path] | None:
    """What `--val` means: nothing, a share, or stores."""
    if val is None:
        return None
    if len(val) == 1:
        try:
            return float(val[0])
        except ValueError:
            pass
    return checked([Path(each) for each in val])


def report(model: Model, history: pd.DataFrame) -> str:
    """The last epochs, and what the card says of the model's reliability."""
    lines = [shown(history.tail(TAIL), index=False)] if len(history.columns) > 1 else []
    assert model.card is not None
    known = [value for value in model.card.val_pcc.values() if value is not None]
    if known:
        lines.append(f"PCC {sum(known) / len(known):.3f} over {len(known)} genes on {model.card.val_source}")
    return "\n".join([*lines, f"{len(model.genes)} genes, sections {', '.join(model.card.sections)}"])
