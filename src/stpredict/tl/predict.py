"""Predict expression from the H&E image into an object, a store, or many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from stpredict import _inference, _spatialdata
from stpredict._arguments import check_arguments
from stpredict.models import load
from stpredict.tl._predict._distributed import predict_distributed, resolve_runtime_on_worker
from stpredict.tl._predict._job import PredictionJob, has_finished_result
from stpredict.tl._predict._request import (
    Output,
    OutputName,
    PredictRequest,
    RasterDtype,
    add_embeddings,
    resolve_genes,
)

if TYPE_CHECKING:
    from dask.distributed import Client
    from spatialdata import SpatialData

    from stpredict._embeddings import GeneEmbeddings
    from stpredict.models import Model


def predict(
    sdata: SpatialData | str | Path | Sequence[SpatialData | str | Path],
    model: Model | str | Path,
    *,
    image_key: str | None = None,
    shapes_key: str | None = None,
    table_name: str | None = None,
    genes: str | Sequence[str] | None = None,
    mpp: float | None = None,
    tissue_key: str | None = None,
    output: OutputName = "layer",
    raster_mpp: float | None = None,
    dtype: RasterDtype = "float32",
    key_added: str | None = None,
    table_added: str | None = None,
    overwrite: bool = False,
    device: str = "auto",
    precision: str = "auto",
    batch_size: int | Literal["auto"] = "auto",
    compile: bool = False,
    embeddings: GeneEmbeddings | str | Path | None = None,
    resume: bool = False,
    client: Client | None = None,
    progress: bool = True,
) -> None:
    """Predict expression from the H&E image, and write it into the object (and its store, if it has one).

    Writes, in target units (the card says which; usually natural log1p of counts per 10,000):

    - ``tables[table].layers[key]`` float32 (n_obs, n_vars), NaN outside the panel and for shapes off image or tissue;
      ``var[key]``, ``var[f"{key}_val_pcc"]`` and what else the card knows of each gene (see `stp.tl.reliability`),
      ``obs[f"{key}_coverage"]``, ``obs[f"{key}_domain"]`` (percentile among training shapes that were left out, 0 to
      100; beyond 99 is tissue that the model does not know), ``uns["stpredict"][key]``; of an ensemble also the spread
      of its members, ``layers[f"{key}_sd"]``; or a new table of these;
    - ``images[key]`` float32 (gene, y, x) of 11 significant bits, with the image's transformations, before the model's
      link; in a store, with coarser levels where it is large.

    Parameters
    ----------
    sdata : SpatialData | str | Path | Sequence[SpatialData | str | Path]
        A SpatialData object, the path of a .zarr store, or a list of either.
    model : Model | str | Path
        A trained model, the name of a shipped one, the folder of a saved one, or "hf://owner/name@revision" of one on a
        hub (see `stp.models.load`).
    image_key : str, optional
        Which image; None: the only one.
    shapes_key : str, optional
        Which shapes (spots, bins, cells), or labels, every one of which is a shape; None: the only ones, or those that
        the table annotates.
    table_name : str, optional
        Which table gets the layer; None: the only one, or the one that annotates the shapes.
    genes : str | Sequence[str], optional
        Which genes, in this order; None: the model's panel. A model that answers by text takes any gene that it has an
        embedding of.
    mpp : float, optional
        Micrometres per pixel of the full-resolution image; None: from a coordinate system in micrometres, or from known
        spots, bins or cells. One that contradicts a micrometre system by more than 15 % is refused; where it
        contradicts shapes, or else the size of nuclei in the picture, a warning says so.
    tissue_key : str, optional
        Shapes or labels that outline the tissue: what lies outside is not read out, and tiles of a raster without any
        stay NaN. None: the whole image.
    output : {"layer", "raster", "both", "latent"}, default "layer"
        "layer": values inside shapes; "raster": the map itself (dense models); "both"; "latent": the map of the model's
        last features, for more genes later.
    raster_mpp : float, optional
        Micrometres per raster pixel, a multiple of the model's own step; None: that step.
    dtype : {"float32", "float16"}, default "float32"
        Number format of the raster. "float32" is what SpatialData and its plots take, rounded to the 11 significant
        bits that float16 has; in a store both take about the same room, in memory "float16" half of it.
    key_added : str, optional
        Name of layer and image; None: the model class in lower case.
    table_added : str, optional
        Write a new table of the predicted genes with this name, instead of a layer of an existing one.
    overwrite : bool, default False
        Replace results of the same name; otherwise they raise.
    device : str, default "auto"
        "auto", "cpu", "cuda", "cuda:1", "mps". "auto" takes CUDA if it is there, and logs what it took; a device that
        is named is never replaced by another.
    precision : str, default "auto"
        "auto" (bf16 where the processor has it; it is logged), "32" (float32), "bf16", "16".
    batch_size : int | {"auto"}, default "auto"
        Tiles (dense models) or patches at a time.
    compile : bool, default False
        Dense models: let `torch.compile` compile encoder and decoder first. Results differ by rounding. Whether it pays
        for the time that compiling takes depends on device, model and number of tiles: try it on one slide.
    embeddings : GeneEmbeddings | str | Path, optional
        Embeddings of further genes, for a model that answers by text: what `stp.tl.embed_genes` returns, or its
        .safetensors file.
    resume : bool, default False
        Go on with an interrupted prediction of the same name into the same store: what it had finished is not done
        again, and the result is the same to the bit (with `compile`, to rounding). Another model, other genes or other
        shapes are refused. Stores that have the result already are left as they are, and refused where it was made of
        something else.
    client : Client, optional
        A `dask.distributed.Client`: chunks of slides (tiles, or rows of shapes) go to its workers, which must see the
        stores and the folder of the model under the same paths. Workers that offer a resource "GPU" take one chunk at
        a time a GPU.
    progress : bool, default True
        Show progress bars.

    Raises
    ------
    ValueError
        For an empty list, an object or a store that is given twice, keys that are missing, not unique or taken, no mpp,
        an image too coarse or not RGB, shapes that all lie off image or tissue, genes the model or the table lacks,
        results too large (with the ways out), and an interrupted run of something else, and where image, shapes or
        table were changed under the run.
    FileNotFoundError
        For an unknown model or store.
    PermissionError
        For a gated model of a hub.
    ConnectionError
        Where a hub cannot be reached and its cache does not have the model.
    OSError
        Where a chunk of the image cannot be read, the disk is full or the store is read-only.
    MemoryError
        Where one tile does not fit into memory.
    RuntimeError
        Where another process is predicting the same name, and where workers fail or run out of memory.

    Notes
    -----
    When it raises, nothing of that object has changed; the objects of a list are done one after the other. For an
    object in a store, finished chunks are kept beside it after an interrupt or a fault, and the message says where.

    Examples
    --------
    >>> stp.tl.predict(slide, ridge, shapes_key="spots", key_added="again", progress=False)
    >>> table = slide.tables["table"]
    >>> "again" in table.layers, int(table.var["again"].sum())
    (True, 4)
    """
    check_arguments(predict, locals())
    model = load(model) if isinstance(model, str | Path) else model
    if model.card is None:
        raise ValueError(
            f"this {type(model).__name__} was never trained. Call tl.train first, or load a trained model."
        )
    add_embeddings(model, embeddings)
    options = _inference.RuntimeOptions(
        device=device, precision=precision, batch_size=batch_size, progress=progress, compile=compile
    )
    request = PredictRequest(
        model=model,
        genes=resolve_genes(model, genes),
        key=key_added or type(model).__name__.lower(),
        output=Output.parse(output),
        spec=_spatialdata.SectionSpec(image_key=image_key, shapes_key=shapes_key, mpp=mpp, tissue_key=tissue_key),
        table_name=table_name,
        table_added=table_added,
        raster_mpp=raster_mpp,
        dtype=dtype,
        overwrite=overwrite,
        resume=resume,
        runtime=(
            options.resolve(model.output)
            if client is None
            else resolve_runtime_on_worker(client, options, model.output)
        ),
    )
    many = _listed(sdata)
    if client is not None:
        predict_distributed(client, many, request, embeddings)
        return
    for k, each in enumerate(many):
        try:
            opened = _spatialdata.opened(each)
            runtime = replace(request.runtime, label=f", {k + 1}/{len(many)}" if len(many) > 1 else "")
            if not (request.resume and has_finished_result(opened, request)):
                with PredictionJob(opened, replace(request, runtime=runtime)) as job:
                    prediction = _inference.predict_with_spread(
                        model, job.section, job.request.inferred_genes, runtime=runtime, raster=job.writer,
                        parts=job.parts,
                    )  # fmt: skip
                    job.commit(prediction)
        except BaseException as error:
            if len(many) > 1:
                error.add_note(_where_it_stopped(many, k))
            raise


def _where_it_stopped(many: Sequence[SpatialData | str | Path], k: int) -> str:
    """Which object of a list failed, and how to go on."""
    this = _spatialdata.path_of(many[k]) or "an object in memory"
    if all(map(_spatialdata.path_of, many)):
        go_on = "The same call with resume=True leaves what is done as it is."
    else:
        go_on = "Pass the rest of the list to go on."
    return f"This was {this}, {k + 1} of {len(many)}; those before it are done. {go_on}"


def _listed(sdata: SpatialData | str | Path | Sequence[SpatialData | str | Path]) -> list[SpatialData | str | Path]:
    """All that is to be predicted; stores that are not there, or named twice, are found before any work is done."""
    many = _spatialdata.listed(sdata)
    if not many:
        raise ValueError("there is nothing to predict: the list of objects and stores is empty.")
    if lacking := [str(each) for each in many if isinstance(each, str | Path) and not Path(each).exists()]:
        raise FileNotFoundError(f"there is no store {', '.join(map(repr, lacking))}.")
    paths = [str(path.resolve()) for each in many if (path := _spatialdata.path_of(each)) is not None]
    objects = [id(each) for each in many if not isinstance(each, str | Path)]
    if len(set(objects)) < len(objects):
        raise ValueError("an object is given twice. Pass each once.")
    if twice := sorted({path for path in paths if paths.count(path) > 1}):
        raise ValueError(f"these stores are named twice: {twice}. Name each once.")
    return many
