"""Tables as the papers have them, from the result of `stp.tl.benchmark` and `stp.tl.unseen_genes`."""

from __future__ import annotations

from stpredict.tables._markdown import markdown
from stpredict.tables._scores import cost, pooled, scores, sections
from stpredict.tables._several import differences, scales, text, transfer, unseen

__all__ = ["cost", "differences", "markdown", "pooled", "scales", "scores", "sections", "text", "transfer", "unseen"]
