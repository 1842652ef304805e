"""`stpredict predict`: predict expression from the H&E image, and write it into the stores."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

import stpredict as stp
from stpredict.cli._options import (
    DATA,
    RESULT,
    RUN,
    Device,
    Genes,
    ImageKey,
    ImageMpp,
    Precision,
    Progress,
    ShapesKey,
    Stores,
    check_store,
    gene_names,
    of_verb,
)


def predict(
    stores: Stores,
    /,
    *,
    model: Annotated[
        str,
        Parameter(
            help="A model that comes with the package (`stpredict models`), a folder, or hf://owner/name@revision of a "
            "hub."
        ),
    ],
    genes: Genes = None,
    output: Annotated[
        Literal["layer", "raster", "both", "latent"], of_verb("tl.predict", "output", group=RESULT)
    ] = "layer",
    raster_mpp: Annotated[float | None, of_verb("tl.predict", "raster_mpp", group=RESULT)] = None,
    dtype: Annotated[Literal["float32", "float16"], of_verb("tl.predict", "dtype", group=RESULT)] = "float32",
    key_added: Annotated[str | None, of_verb("tl.predict", "key_added", group=RESULT)] = None,
    table_added: Annotated[str | None, of_verb("tl.predict", "table_added", group=RESULT)] = None,
    overwrite: Annotated[bool, of_verb("tl.predict", "overwrite", group=RESULT, negative="")] = False,
    image_key: ImageKey = None,
    shapes_key: ShapesKey = None,
    table_name: Annotated[str | None, of_verb("tl.predict", "table_name", group=DATA)] = None,
    mpp: ImageMpp = None,
    tissue_key: Annotated[str | None, of_verb("tl.predict", "tissue_key", group=DATA)] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    batch_size: Annotated[int | Literal["auto"], of_verb("tl.predict", "batch_size", group=RUN)] = "auto",
    embeddings: Annotated[Path | None, of_verb("tl.predict", "embeddings", group=DATA)] = None,
    compile: Annotated[bool, of_verb("tl.predict", "compile", group=RUN, negative="")] = False,
    resume: Annotated[bool, of_verb("tl.predict", "resume", group=RUN, negative="")] = False,
    scheduler: Annotated[
        str | None,
        Parameter(
            group=RUN,
            help="Address of a dask scheduler (tcp://host:8786): its workers predict. They must see stores and model "
            "under the same paths.",
        ),
    ] = None,
    progress: Progress = True,
) -> None:
    """Predict expression from the H&E image, and write it into the stores.

    Layers and rasters are in the units of the model's target (usually natural log1p of counts per 10,000). A store is
    changed as a whole or not at all.
    """
    for store in stores:
        check_store(store)
    with _client(scheduler) as client:
        stp.tl.predict(
            list(stores), model, image_key=image_key, shapes_key=shapes_key, table_name=table_name,
            genes=gene_names(genes), mpp=mpp, tissue_key=tissue_key, output=output, raster_mpp=raster_mpp,
            dtype=dtype, key_added=key_added, table_added=table_added, overwrite=overwrite, device=device,
            precision=precision, batch_size=batch_size, compile=compile, embeddings=embeddings, resume=resume,
            client=client, progress=progress,
        )  # fmt: skip
    print(f"predicted: {', '.join(map(str, stores))}")


@contextmanager
def _client(scheduler: str | None) -> Iterator[Any]:
    """A client of the scheduler at this address; None without one. Raises OSError where there is none."""
    if scheduler is None:
        yield None
        return
    from dask.distributed import Client

    try:
        client = Client(scheduler, timeout="10s")
    except (OSError, ValueError) as error:
        raise OSError(
            f"there is no dask scheduler at {scheduler!r} ({error}). Start one with `dask scheduler`, and workers with "
            "`dask worker <its address>`."
        ) from error
    with client:
        yield client
