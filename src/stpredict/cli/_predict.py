"""`stpredict predict`."""

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
    TissueKey,
    check_store,
    gene_names,
)


def predict(
    stores: Stores,
    /,
    *,
    model: Annotated[str, Parameter(help="A model that comes with the package (`stpredict models`), or a folder.")],
    genes: Genes = None,
    output: Annotated[
        Literal["layer", "raster", "both", "latent"],
        Parameter(
            group=RESULT,
            help="layer: values inside the shapes; raster: the map; latent: the map of the last features, for more "
            "genes later.",
        ),
    ] = "layer",
    raster_mpp: Annotated[
        float | None, Parameter(group=RESULT, help="Micrometres per raster pixel. Default: the model's own step.")
    ] = None,
    key_added: Annotated[
        str | None, Parameter(group=RESULT, help="Name of layer and image. Default: the model class in lower case.")
    ] = None,
    table_added: Annotated[
        str | None, Parameter(group=RESULT, help="Write a new table of this name, instead of a layer.")
    ] = None,
    overwrite: Annotated[bool, Parameter(group=RESULT, help="Replace results of the same name.", negative="")] = False,
    image_key: ImageKey = None,
    shapes_key: ShapesKey = None,
    table_name: Annotated[
        str | None,
        Parameter(group=DATA, help="Which table gets the layer. Default: the one that annotates the shapes."),
    ] = None,
    mpp: ImageMpp = None,
    tissue_key: TissueKey = None,
    device: Device = "auto",
    precision: Precision = "auto",
    batch_size: Annotated[
        int | Literal["auto"], Parameter(group=RUN, help="Tiles (dense models) or patches at a time.")
    ] = "auto",
    embeddings: Annotated[
        Path | None,
        Parameter(
            group=DATA, help="Embeddings of further genes, for a model that answers by text: a .safetensors file."
        ),
    ] = None,
    compile: Annotated[
        bool, Parameter(group=RUN, help="Compile a dense model first: for slides of many tiles.", negative="")
    ] = False,
    resume: Annotated[
        bool, Parameter(group=RUN, help="Go on with an interrupted prediction of the same name.", negative="")
    ] = False,
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
            key_added=key_added, table_added=table_added, overwrite=overwrite, device=device, precision=precision,
            batch_size=batch_size, compile=compile, embeddings=embeddings, resume=resume, client=client,
            progress=progress,
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
