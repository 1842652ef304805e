"""The page: what was found, put into the template beside style and script, as one text."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

ASSETS = Path(__file__).parent / "assets"
COLOUR_MAPS = ("viridis", "magma", "cividis")


def page(content: Mapping[str, Any], **words: Any) -> str:
    """The whole file: `content` is what the script draws, `words` is what the template says."""
    environment = Environment(
        loader=FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # in a script no letter of a gene's name may end it
    data = json.dumps(_clean(content), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    style, script = ((ASSETS / f"report.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    return environment.get_template("report.html.j2").render(
        data=Markup(data), style=Markup(style), script=Markup(script), **words
    )


def colour_maps() -> dict[str, str]:
    """256 colours of each map, as hexadecimal digits without anything between."""
    from matplotlib import colormaps

    return {
        name: (colormaps[name](np.arange(256))[:, :3] * 255).round().astype(np.uint8).tobytes().hex()
        for name in COLOUR_MAPS
    }


def _clean(value: Any) -> Any:
    """Plain values; what is not a number is null."""
    if isinstance(value, Mapping):
        return {str(key): _clean(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(each) for each in value]
    if isinstance(value, np.ndarray):
        return _clean(value.tolist())
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value
