"""Prediction on the workers of a dask cluster: pieces of slides as tasks that only files tie together."""

from __future__ import annotations

import platform
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stpredict import _infer, _sdata
from stpredict._section import Fingerprint, Section, fingerprint
from stpredict.models import load, shipped
from stpredict.models._base import weights_sha256
from stpredict.tl._asked import tell
from stpredict.tl._done import is_done
from stpredict.tl._job import Asked, Job, path_of, raster_of, section_of, texts_digest

if TYPE_CHECKING:
    from dask.distributed import Client, Future
    from spatialdata import SpatialData

    from stpredict._embeddings import GeneEmbeddings
    from stpredict.models import Model

TASKS_A_WORKER = 8  # of a slide: few enough to be cheap, enough for workers of unlike speed
SLIDES = 4  # under way at once: few enough for the memory of the client
WAIT_S = 60
GPU = "GPU"  # the name of the resource by which workers offer their devices


_here = threading.Lock()  # what is done by the client is done for one slide after the other
_under_way: list[Future] = []  # of all slides, to be cancelled by an interrupt


@dataclass(frozen=True)
class Order:
    """Some pieces of one slide: everything that a worker has to know, by path.

    store, model, folder
        The slide, the saved model, and the folder where parts and chunks go.
    asked
        What `predict` was asked, without the model.
    image_and_shapes, weights, texts
        What slide and model must still be.
    """

    store: str
    model: str
    folder: str
    asked: Asked = field(hash=False)
    shapes_key: str | None
    image_and_shapes: Fingerprint
    weights: str
    texts: str
    embeddings: Any = field(hash=False, compare=False)  # `texts` tells them apart
    which: tuple[int, ...] = ()


def settled_on(client: Client, runtime: _infer.Runtime, output: str) -> _infer.Runtime:
    """The runtime as a worker settles it: device and precision are its own. Raises RuntimeError without any worker."""
    try:
        client.wait_for_workers(1, timeout=WAIT_S)
    except TimeoutError as error:
        raise RuntimeError(
            f"the cluster at {client.scheduler.address if client.scheduler else client} has no worker after {WAIT_S} "
            "seconds. Start some with `dask worker <address of the scheduler>`."
        ) from error
    return client.submit(_infer.settled, runtime, output, pure=False, resources=_resources(client)).result()


def predict_on(
    client: Client,
    sdatas: Sequence[SpatialData | str | Path],
    asked: Asked,
    embeddings: GeneEmbeddings | str | Path | None,
) -> None:
    """Predict into objects in stores; several slides are under way at once, and each is written when it is done.

    A slide that fails does not stop the others.

    Raises ValueError for an object in memory and a model that is not saved; what the first slide that failed raised,
    with a note on the others.
    """
    _check_paths(sdatas, asked.model)
    if isinstance(embeddings, str | Path):
        embeddings = Path(embeddings).resolve()
    with ThreadPoolExecutor(SLIDES) as pool:
        slides = [pool.submit(_slide, client, sdata, asked, embeddings) for sdata in sdatas]
        try:
            errors = [slide.exception() for slide in slides]
        except BaseException:  # an interrupt: slides that wait are not begun, those under way end with it
            client.cancel(_under_way)
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    failed = [(str(path_of(sdata)), error) for sdata, error in zip(sdatas, errors, strict=True) if error is not None]
    if failed:
        (path, first), *others = failed
        more = f"; {len(others)} more failed: {[each for each, _ in others]}" if others else ""
        done = f" The other {len(sdatas) - len(failed)} slides are done." if len(sdatas) > 1 else ""
        first.add_note(f"This was {path}{more}.{done}")
        raise first


def _slide(
    client: Client, sdata: SpatialData | str | Path, asked: Asked, embeddings: GeneEmbeddings | Path | None
) -> None:
    """One slide: its pieces by the workers, the rest here."""
    with ExitStack() as stack:
        with _here:
            sdata = _sdata.opened(sdata)
            if is_done(sdata, asked):
                return
            job = stack.enter_context(Job(sdata, asked))
            waiting = _submitted(client, job, embeddings)
        _under_way.extend(waiting)
        try:
            _wait(waiting)
        finally:
            client.cancel(waiting)
            _under_way[:] = [future for future in _under_way if future not in waiting]
        job.asked = replace(asked, runtime=replace(asked.runtime, device="cpu"))  # sums, and the genes' head
        with _here:
            job.finish()


def work(order: Order) -> None:
    """What a worker does with an order. Writing is by file, so that work that is done twice counts once."""
    model, sdata, section = _prepared(replace(order, which=()))
    asked = replace(order.asked, model=model, overwrite=True)
    with ExitStack() as stack:
        raster = raster_of(sdata, section, asked, stack, Path(order.folder))
        _infer.work(
            model, section, asked.genes, order.which, runtime=replace(asked.runtime, progress=False),
            parts=_parts(order.folder), raster=raster, latent=asked.output == "latent",
        )  # fmt: skip


@lru_cache(maxsize=2)
def _prepared(order: Order) -> tuple[Model, SpatialData, Section]:
    """Model, object and section of an order; a worker does many pieces of one slide."""
    from spatialdata import read_zarr

    for what, path in (("model", order.model), ("store", order.store), ("folder of the run", order.folder)):
        if path not in shipped() and not Path(path).exists():
            raise FileNotFoundError(
                f"the worker on {platform.node()} does not see the {what} {path!r}. Workers need the same paths as the "
                "client: put stores and models on a file system that all machines share."
            )
    model = load(order.model)
    if weights_sha256(model) != order.weights:
        raise ValueError(f"the model in {order.model!r} has changed since the prediction began; predict again.")
    tell(model, order.embeddings)
    if texts_digest(model, order.asked.genes) != order.texts:
        raise ValueError(
            f"the model in {order.model!r} knows other texts of the genes than the one that was passed. Pass "
            "embeddings= of all genes that are asked for, or save the model again."
        )
    sdata = read_zarr(order.store)
    section = section_of(sdata, replace(order.asked, model=model), order.shapes_key)
    if fingerprint(section) != order.image_and_shapes:
        raise ValueError(f"image or shapes in {order.store!r} have changed since the prediction began; predict again.")
    return model, sdata, section


def _parts(folder: str) -> Any:
    from stpredict import _sdata
    from stpredict._pieces import Part

    return _sdata.KeptParts(Path(folder) / "parts", Part)


def _check_paths(sdatas: Sequence[SpatialData | str | Path], model: Model) -> None:
    stores = [path_of(sdata) for sdata in sdatas]
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


def _submitted(client: Client, job: Job, embeddings: GeneEmbeddings | Path | None) -> list[Future]:
    """The tasks of a slide, for the pieces that are not finished."""
    asked, run = job.asked, job.run
    assert run is not None and asked.model.loaded_from is not None
    n = _infer.n_pieces(asked.model, job.section, runtime=asked.runtime, raster=job.raster is not None)
    missing = [i for i in range(n) if not job.parts.has(i)]
    n_workers = max(1, len(client.scheduler_info(n_workers=-1)["workers"]))
    step = -(-len(missing) // (TASKS_A_WORKER * n_workers)) or 1
    order = Order(
        store=str(Path(job.sdata.path).resolve()), model=asked.model.loaded_from, folder=str(run.work),
        asked=replace(asked, model=None),  # type: ignore[arg-type]  # workers load their own
        shapes_key=None if job.place is None else job.place.shapes_key,
        image_and_shapes=job.fingerprint, weights=job.record["weights_sha256"],
        texts=texts_digest(asked.model, asked.genes), embeddings=embeddings,
    )  # fmt: skip
    orders = [replace(order, which=tuple(missing[k : k + step])) for k in range(0, len(missing), step)]
    return client.map(work, orders, pure=False, resources=_resources(client))


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
