"""Whether a device gives the right answers: those of the CPU in float32."""

from __future__ import annotations

import collections
import contextlib
import importlib
import logging
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from _device_parts import Row, Setting, Skipped
from _device_simulated import bins, build, forget_features, measured, slide, tiny, trained
from numpy.typing import NDArray
from torch.overrides import TorchFunctionMode

from stpredict import _inference, models
from stpredict._section import Section
from stpredict.models import Model

FLAT = 1e-5  # standard deviation of a gene below which nothing is compared
EXACT = 1e-3  # of a standard deviation, float32
ALIKE = 0.999  # correlation of a gene, bf16
TopK = collections.namedtuple("TopK", "values indices")


@contextlib.contextmanager
def without_tf32() -> Iterator[None]:
    """Products and convolutions of float32 in float32."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


class Neighbours(TorchFunctionMode):
    """Writes down which neighbours are taken, and takes the same ones when it is entered for another device.

    `apart` is how many times the neighbours would have been others, of `n`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []
        self.replaying, self.at, self.apart, self.n = False, 0, 0, 0

    def replay(self) -> Neighbours:
        """The same, from now on giving what was written down."""
        self.replaying = True
        return self

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func not in (torch.Tensor.topk, torch.topk):
            return out
        if not self.replaying:
            self.seen.append(out.indices.cpu())
            return out
        index = self._next(_rows(out.indices), _rows)
        return TopK(args[0].gather(1, index.to(args[0].device)), index.to(args[0].device))

    def edges(self, plain: Any) -> Any:
        """The graph of a section, in place of `plain`."""

        def graph(*args: Any, **kwargs: Any) -> Any:
            out = plain(*args, **kwargs)
            if not self.replaying:
                self.seen.append(out)
                return out
            return self._next(_edges(out), _edges)

        return graph

    def _next(self, found: list[Any], listed: Any) -> Any:
        """What was written down, and how much of it was found again."""
        known = self.seen[self.at]
        self.at += 1
        self.apart += sum(one != other for one, other in zip(found, listed(known), strict=True))
        self.n += len(found)
        return known


def _rows(index: torch.Tensor) -> list[Any]:
    return [set(row) for row in index.cpu().tolist()]


def _edges(graph: Any) -> list[Any]:
    """The set of sources of every target, kind by kind."""
    listed: list[Any] = []
    for source, target in graph:
        listed += [
            set(source[target == t].tolist())
            for t in range(int(max(target.max(initial=-1) for _, target in graph)) + 1)
        ]
    return listed


def predicted(
    model: Model, where: Section, device: str, precision: str, mode: contextlib.AbstractContextManager | None = None,
    **how: Any,
) -> NDArray[np.float32]:  # fmt: skip
    """Values of all genes inside all shapes; no feature is remembered from before."""
    forget_features()
    runtime = _inference.RuntimeOptions(device=device, precision=precision, progress=False, **how).resolve(model.output)
    with without_tf32(), mode or contextlib.nullcontext():
        return _inference.predict(model, where, model.genes, runtime=runtime)[0]


def worst(found: NDArray, wanted: NDArray) -> tuple[float, int]:
    """The largest difference in standard deviations of its gene, and how many genes are flat and left out."""
    spread = wanted.std(axis=0)
    varies = spread > FLAT
    if not np.isfinite(found).all():
        return float("inf"), int((~varies).sum())
    apart = np.abs(found - wanted)[:, varies] / spread[varies]
    return float(apart.max(initial=0.0)), int((~varies).sum())


def least_correlation(found: NDArray, wanted: NDArray) -> float:
    """The lowest correlation of a gene that varies; 1 where none does."""
    varies = wanted.std(axis=0) > FLAT
    pairs = zip(found.T[varies], wanted.T[varies], strict=True)
    return float(min((np.corrcoef(one, other)[0, 1] for one, other in pairs), default=1.0))


def _sections(s: Setting) -> tuple[list[Section], Section]:
    sizes = {"side": 384, "n": 24, "n_genes": 4} if s.small else {"side": 768, "n": 120, "n_genes": 32}
    return [measured(1, **sizes), measured(2, **sizes)], measured(3, **sizes)


def every_model(s: Setting) -> list[Row]:
    training, test = _sections(s)
    rows = []
    for name in sorted(models._classes()):
        model = trained(build(name, test.genes or ()), training)
        rows += _one_model(name, model, test, s.device)
    if not s.small:
        model = models.load("pixnet-her2st")
        rows += _one_model("pixnet-her2st", model, replace(test, image=replace(test.image, mpp=model.mpp)), s.device)
    return rows


def _one_model(name: str, model: Model, test: Section, device: str) -> list[Row]:
    module, neighbours = importlib.import_module(type(model).__module__), Neighbours()
    if hasattr(module, "edges"):
        patched = mock.patch.object(module, "edges", neighbours.edges(module.edges))
    else:
        patched = contextlib.nullcontext()
    with patched:
        wanted = predicted(model, test, "cpu", "32", neighbours)
        exact = predicted(model, test, device, "32", neighbours.replay())
        apart, n = neighbours.apart, neighbours.n
        neighbours.at = 0
        rounded = predicted(model, test, device, "bf16", neighbours)
        neighbours.at = 0
        alike_to = predicted(model, test, "cpu", "bf16", neighbours)
    apart_sd, n_flat = worst(exact, wanted)
    alike, rounding = least_correlation(rounded, alike_to), least_correlation(rounded, wanted)
    flat = f" ({n_flat} flat genes left out)" if n_flat else ""
    rows = [
        Row(f"{name}, float32, largest difference{flat}", apart_sd, "sd", f"<= {EXACT}", apart_sd <= EXACT),
        Row(f"{name}, bf16, least correlation of a gene with the CPU's bf16", alike, "", f"> {ALIKE}", alike > ALIKE),
        Row(f"{name}, bf16, least correlation of a gene with the CPU's float32", rounding),
    ]
    if n:
        rows.append(Row(f"{name}, float32, neighbours that would be others (fixed above)", apart, f"of {n}"))
    return rows


def raster(s: Setting) -> list[Row]:
    training, test = _sections(s)
    model = trained(tiny(test.genes or ()), training)
    plain, side = model.config, 2 * model.config.core_px
    where = {
        "spots": slide(side, 1.0, pitch_um=64, radius_um=30, period=1024),
        "bins": bins(side // 16, 1.0, bin_um=15, period=1024),
    }
    maps, rows = {}, []
    model.config = replace(plain, turns=4)
    for device in ("cpu", s.device):
        maps[device] = _map(model, where["spots"], device)
    apart, _ = worst(maps[s.device].reshape(len(model.genes), -1).T, maps["cpu"].reshape(len(model.genes), -1).T)
    rows.append(Row("raster of four turns, float32, largest difference", apart, "sd", f"<= {EXACT}", apart <= EXACT))
    model.config = plain
    for name, each in where.items():
        wanted, found = (predicted(model, each, device, "32") for device in ("cpu", s.device))
        apart, _ = worst(found, wanted)
        rows.append(
            Row(f"{each.n_shapes:,} {name}, float32, largest difference", apart, "sd", f"<= {EXACT}", apart <= EXACT)
        )
    return rows


def _map(model: Model, where: Section, device: str) -> NDArray[np.float32]:
    out = np.full((len(model.genes), *_inference.raster_shape(model, where)), np.nan, dtype=np.float32)

    def take(y: slice, x: slice, values: NDArray[np.float32]) -> None:
        out[:, y, x] = values

    runtime = _inference.RuntimeOptions(device=device, precision="32", progress=False).resolve(model.output)
    with without_tf32():
        _inference.predict(model, where, model.genes, runtime=runtime, raster=take)
    return out


class _Messages(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def out_of_memory(s: Setting) -> list[Row]:
    """With a share of the card's memory in which one tile fits and four do not."""
    if not s.cuda:
        raise Skipped("only a CUDA device can be given a share of its memory")
    model = models.load("pixnet-her2st").eval()
    where = slide(4096, model.mpp, pitch_um=100, radius_um=27.5, period=4096)
    total, peaks = torch.cuda.get_device_properties(s.device).total_memory, {}
    wanted = predicted(model, where, s.device, "32", batch_size=1)
    for n in (1, 4):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        predicted(model, where, s.device, "32", batch_size=n)
        peaks[n] = torch.cuda.max_memory_reserved()
    torch.cuda.empty_cache()
    share = (peaks[1] + 0.4 * (peaks[4] - peaks[1])) / total
    logger, heard = logging.getLogger("stpredict"), _Messages()
    logger.addHandler(heard)
    logger.setLevel(logging.INFO)
    torch.cuda.set_per_process_memory_fraction(share)
    found = predicted(model, where, s.device, "32", batch_size=4)
    halved = [text for text in heard.texts if text.startswith("out of memory")]
    apart, _ = worst(found, wanted)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.6 * peaks[1] / total)
    try:
        predicted(model, where, s.device, "32", batch_size=1)
        said = "no error"
    except (MemoryError, torch.OutOfMemoryError) as error:
        said = type(error).__name__
    return [
        Row(f"reserved by batches of 1 and 4 tiles; {share * total / 2**30:.2f} GiB were given",
            f"{peaks[1] / 2**30:.2f} and {peaks[4] / 2**30:.2f}", "GiB"),
        Row("batch halved", "; ".join(halved) or "never", "", "at least once", bool(halved)),
        Row("the same answer, float32", apart, "sd", f"<= {EXACT}", apart <= EXACT),
        Row("where not one tile fits", said, "", "MemoryError", said == "MemoryError"),
    ]  # fmt: skip


def two_processes(s: Setting) -> list[Row]:
    """Another process and this one at once on one device, again and again, against this one alone."""
    wanted, path = answers(s.device)[0], s.folder / "answers.npy"
    command = [sys.executable, str(Path(__file__).with_name("_device_run.py")), "--answers", str(path)]
    other = subprocess.Popen(
        [*command, "--device", s.device], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    other.stdout.readline()  # it is ready
    both = {"this process": answers(s.device)}
    _, errors = other.communicate()
    if other.returncode:
        raise RuntimeError(f"the other process ended with {other.returncode}: {errors.strip()[-500:]}")
    both["the other"] = np.load(path)
    return [
        Row(f"{name}, float32, largest difference", apart, "sd", f"<= {EXACT}", apart <= EXACT)
        for name, apart in ((name, max(worst(each, wanted)[0] for each in found)) for name, found in both.items())
    ]


def answers(device: str, n: int = 3) -> NDArray[np.float32]:
    """(n, shapes, genes): one prediction again and again, which every process makes alike."""
    model, where = tiny(("g0", "g1", "g2")).eval(), slide(768, 1.0, pitch_um=64, radius_um=20, period=1024)
    return np.stack([predicted(model, where, device, "32") for _ in range(n)])


def compiled(s: Setting) -> list[Row]:
    if not s.cuda:
        raise Skipped("on a few processors compiling takes longer than all other parts")
    model = models.load("pixnet-her2st").eval()
    where = slide(4096, model.mpp, pitch_um=100, radius_um=27.5, period=4096)
    plain, made = (predicted(model, where, s.device, "32", compile=each) for each in (False, True))
    apart, _ = worst(made, plain)
    plain, made = (predicted(model, where, s.device, "bf16", compile=each) for each in (False, True))
    alike = least_correlation(made, plain)
    return [
        Row("compiled against eager, float32, largest difference", apart, "sd", f"<= {EXACT}", apart <= EXACT),
        Row("compiled against eager, bf16, least correlation of a gene (fewer roundings when compiled)", alike),
    ]
