"""Prediction on a dask cluster: chunks of slides as tasks that exchange results through files."""

from __future__ import annotations

import platform
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from stpredict import _caches, _inference, _spatialdata
from stpredict._section import Fingerprint, Section, fingerprint
from stpredict.models import is_hub_name, load, shipped
from stpredict.models._base import weights_sha256
from stpredict.tl._predict._job import PredictionJob, find_raster, has_finished_result, section_of
from stpredict.tl._predict._provenance import texts_digest
from stpredict.tl._predict._request import PredictRequest, add_embeddings

if TYPE_CHECKING:
    from dask.distributed import Client, Future
    from spatialdata import SpatialData

    from stpredict._embeddings import GeneEmbeddings
    from stpredict.models import Model

TASKS_A_WORKER = 8  # of a slide: few enough to be cheap, enough for workers of unlike speed
SLIDES = 4  # under way at once: few enough for the memory of the client
WAIT_S = 60
GPU = "GPU"  # the name of the resource by which workers offer their devices


_client_lock = threading.Lock()  # what is done by the client is done for one slide after the other
_submitted_futures: list[Future] = []  # of all slides, to be cancelled by an interrupt


@dataclass(frozen=True)
class WorkItem:
    """Chunks of one slide for a worker: the inputs by path, and the numbers of the chunks.

    Parameters
    ----------
    store, model, folder : str
        The slide, the saved model, and the folder where parts and chunks go.
    request : PredictRequest, optional
        The arguments of `predict`, without the model.
    image_and_shapes, weights, texts
        What slide and model must still be.
    """

    store: str
    model: str
    folder: str
    request: PredictRequest = field(hash=False)
    shapes_key: str | None
    image_and_shapes: Fingerprint
    weights: str
    texts: str
    embeddings: GeneEmbeddings | Path | None = field(hash=False, compare=False)  # `texts` tells them apart
    which: tuple[int, ...] = ()


def resolve_runtime_on_worker(
    client: Client, options: _inference.RuntimeOptions, output: Literal["raster", "spots"]
) -> _inference.Runtime:
    """The runtime that a worker decides on: device and precision are its own.

    Raises RuntimeError without any worker.
    """
    try:
        client.wait_for_workers(1, timeout=WAIT_S)
    except TimeoutError as error:
        raise RuntimeError(
            f"the cluster at {client.scheduler.address if client.scheduler else client} has no worker after {WAIT_S} "
            "seconds. Start some with `dask worker <address of the scheduler>`."
        ) from error
    decided: _inference.Runtime = client.submit(
        options.resolve, output, pure=False, resources=_resources(client)
    ).result()
    return decided


def predict_distributed(
    client: Client,
    sdatas: Sequence[SpatialData | str | Path],
    request: PredictRequest,
    embeddings: GeneEmbeddings | str | Path | None,
) -> None:
    """Predict into objects in stores; several slides are under way at once, and each is written when it is done.

    A slide that fails does not stop the others.

    Raises ValueError for an object in memory and a model that is not saved; what the first slide that failed raised,
    with a note on the others.
    """
    _check_paths(sdatas, request.model)
    if isinstance(embeddings, str | Path):
        embeddings = Path(embeddings).resolve()
    with ThreadPoolExecutor(SLIDES) as pool:
        slides = [pool.submit(_predict_slide, client, sdata, request, embeddings) for sdata in sdatas]
        try:
            errors = [slide.exception() for slide in slides]
        except BaseException:  # an interrupt: slides that wait are not begun, those under way end with it
            client.cancel(_submitted_futures)
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    failed = [
        (str(_spatialdata.path_of(sdata)), error)
        for sdata, error in zip(sdatas, errors, strict=True)
        if error is not None
    ]
    if failed:
        (path, first), *others = failed
        more = f"; {len(others)} more failed: {[each for each, _ in others]}" if others else ""
        done = f" The other {len(sdatas) - len(failed)} slides are done." if len(sdatas) > 1 else ""
        first.add_note(f"This was {path}{more}.{done}")
        raise first


def _predict_slide(
    client: Client, sdata: SpatialData | str | Path, request: PredictRequest, embeddings: GeneEmbeddings | Path | None
) -> None:
    """One slide: its chunks by the workers, the rest here."""
    with ExitStack() as stack:
        with _client_lock:
            sdata = _spatialdata.opened(sdata)
            if request.resume and has_finished_result(sdata, request):
                return
            job = stack.enter_context(PredictionJob(sdata, request))
            waiting = _submit_chunks(client, job, embeddings)
        _submitted_futures.extend(waiting)
        try:
            _wait(waiting)
        finally:
            client.cancel(waiting)
            _submitted_futures[:] = [future for future in _submitted_futures if future not in waiting]
        here = replace(request.runtime, device=torch.device("cpu"))  # for the sums, and the head of the genes
        with _client_lock:
            prediction = _inference.predict_with_spread(
                request.model, job.section, job.request.inferred_genes, runtime=here, raster=job.writer,
                parts=job.parts,
            )  # fmt: skip
            job.commit(prediction)


def run_work_item(item: WorkItem) -> None:
    """Compute the chunks of a work item, on a worker. Results are files, so that work done twice counts once."""
    model, sdata, section = _load_inputs(replace(item, which=()))
    request, store = replace(item.request, model=model), _spatialdata.open_store(sdata)
    with ExitStack() as stack:
        raster = find_raster(request, sdata)
        writer = None if raster is None else raster.open(store, section, stack, Path(item.folder))
        _inference.run_chunks(
            model, section, request.inferred_genes, item.which, runtime=replace(request.runtime, progress=False),
            parts=_spatialdata.PartialFiles(Path(item.folder) / "parts"), raster=writer,
        )  # fmt: skip


@lru_cache(maxsize=2)
def _load_inputs(item: WorkItem) -> tuple[Model, SpatialData, Section]:
    """Model, object and section of a work item; a worker does many chunks of one section."""
    from spatialdata import read_zarr

    for what, path in (("model", item.model), ("store", item.store), ("folder of the run", item.folder)):
        if path not in shipped() and not is_hub_name(path) and not Path(path).exists():
            raise FileNotFoundError(
                f"the worker on {platform.node()} does not see the {what} {path!r}. Workers need the same paths as the "
                "client: put stores and models on a file system that all machines share."
            )
    model = load(item.model)
    if weights_sha256(model) != item.weights:
        raise ValueError(f"the model in {item.model!r} has changed since the prediction began; predict again.")
    add_embeddings(model, item.embeddings)
    if texts_digest(model, item.request.genes) != item.texts:
        raise ValueError(
            f"the model in {item.model!r} knows other texts of the genes than the one that was passed. Pass "
            "embeddings= of all genes that are asked for, or save the model again."
        )
    sdata = read_zarr(item.store)
    section = section_of(replace(item.request, model=model), sdata, item.shapes_key)
    if fingerprint(section) != item.image_and_shapes:
        raise ValueError(f"image or shapes in {item.store!r} have changed since the prediction began; predict again.")
    return model, sdata, section


_caches.register("inputs of a worker", _load_inputs.cache_clear)


def _check_paths(sdatas: Sequence[SpatialData | str | Path], model: Model) -> None:
    stores = [_spatialdata.path_of(sdata) for sdata in sdatas]
    in_memory = [i for i, path in enumerate(stores) if path is None]
    if in_memory:
        raise ValueError(
            f"client= needs objects in stores, which workers can open; objects {in_memory} are in memory. Write them "
            "with sdata.write(...)."
        )
    if model.loaded_from is None:
        raise ValueError(
            f"client= needs a model that workers can load, and this {type(model).__name__} was never saved. Call "
            "model.save(folder) first, on a file system that all machines share."
        )


def _submit_chunks(client: Client, job: PredictionJob, embeddings: GeneEmbeddings | Path | None) -> list[Future]:
    """The tasks of a slide, for the chunks that are not finished."""
    request, checkpoint = job.request, job.checkpoint
    assert checkpoint is not None and job.parts is not None and request.model.loaded_from is not None
    n = _inference.n_chunks(request.model, job.section, runtime=request.runtime, raster=job.writer is not None)
    missing = [i for i in range(n) if not job.parts.has(i)]
    n_workers = max(1, len(client.scheduler_info(n_workers=-1)["workers"]))
    step = -(-len(missing) // (TASKS_A_WORKER * n_workers)) or 1
    item = WorkItem(
        store=str(Path(job.sdata.path).resolve()), model=request.model.loaded_from, folder=str(checkpoint.work),
        request=replace(request, model=None),  # type: ignore[arg-type]  # workers load their own
        shapes_key=None if job.table is None else job.table.shapes_key,
        image_and_shapes=job.fingerprint, weights=job.record["weights_sha256"],
        texts=texts_digest(request.model, request.genes), embeddings=embeddings,
    )  # fmt: skip
    items = [replace(item, which=tuple(missing[k : k + step])) for k in range(0, len(missing), step)]
    return client.map(run_work_item, items, pure=False, resources=_resources(client))


def _resources(client: Client) -> dict[str, int]:
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    return {GPU: 1} if any(GPU in worker.get("resources", {}) for worker in workers) else {}


def _wait(futures: Sequence[Future]) -> None:
    from dask.distributed import KilledWorker, as_completed

    try:
        for future in as_completed(futures):
            future.result()
    except KilledWorker as error:
        raise RuntimeError(
            f"workers died several times at the same work ({error}). Often they were out of memory: give each more, "
            "start fewer on a machine, or pass a smaller batch_size. Nothing was written into the store."
        ) from error
