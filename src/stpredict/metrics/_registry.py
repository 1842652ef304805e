"""The metrics: what each is called, which way is better, and what it has to be given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from stpredict.metrics._morans_i import morans_i_gap
from stpredict.metrics._scores import mae, mse, pcc, spearman
from stpredict.metrics._ssim import ssim
from stpredict.metrics._variance import rvd

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A score of every gene, as evaluation, benchmark, tables, plots and command line know it.

    Parameters
    ----------
    function : callable
        Of predicted and measured values (n_spots, n_genes), and of what it `needs` beside them; returns (n_genes,).
    title : str
        What tables and axes call it.
    better : str
        Which values are better: "higher", "lower", or those nearer to "zero" from both sides.
    needs : str, default "values"
        "values": predicted and measured ones alone; "array": also the row and column (n_spots, 2) of every spot on its
        array; "neighbours": also a sparse graph (n_spots, n_spots).
    unit : str, default ""
        "" where it has none.
    scale_free : bool, default False
        Whether it is the same for predictions on another scale, so that it exists for genes that were never seen. Its
        0 means the same for every gene.
    in_evaluate : bool, default True
        False: `stp.tl.evaluate` leaves it out although it needs values alone. `stp.tl.benchmark` gives all.

    Examples
    --------
    >>> stp.metrics.METRICS["mae"].better
    'lower'
    """

    function: Callable[..., NDArray[Any]]
    title: str
    better: Literal["higher", "lower", "zero"]
    needs: Literal["values", "array", "neighbours"] = "values"
    unit: str = ""
    scale_free: bool = False
    in_evaluate: bool = True

    @property
    def scores_layers(self) -> bool:
        """Whether `stp.tl.evaluate` gives it: it needs values alone, and is not left out."""
        return self.in_evaluate and self.needs == "values"


# In the order in which results list them. A new metric is a function in a file of this folder, and a line here.
METRICS: dict[str, Metric] = {
    "pcc": Metric(function=pcc, title="PCC", better="higher", scale_free=True),
    "spearman": Metric(function=spearman, title="Spearman", better="higher", scale_free=True),
    "mse": Metric(function=mse, title="MSE", better="lower", unit="squared target units"),
    "mae": Metric(function=mae, title="MAE", better="lower", unit="target units"),
    "rvd": Metric(function=rvd, title="RVD", better="lower", in_evaluate=False),
    "ssim": Metric(function=ssim, title="SSIM", better="higher", needs="array"),
    "morans_i_gap": Metric(
        function=morans_i_gap, title="Moran's I gap", better="zero", needs="neighbours", scale_free=True
    ),
}
