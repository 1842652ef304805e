"""`stpredict view`: look at a store in Vitessce, in the browser of this machine."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from stpredict.cli._options import DATA, RESULT, ImageKey, check_store, of_verb


def view(
    store: Annotated[Path, Parameter(help="A SpatialData store (.zarr); it is only read.")],
    /,
    *,
    key: Annotated[
        str | None,
        Parameter(group=DATA, help="Predicted layer that colours the shapes. Default: the only one, else X."),
    ] = None,
    gene: Annotated[
        str | None, Parameter(group=DATA, help="Shown first. Default: the one with the best held-out correlation.")
    ] = None,
    image_key: ImageKey = None,
    shapes_key: Annotated[str | None, of_verb("tl.report", "shapes_key", group=DATA)] = None,
    table_name: Annotated[str | None, of_verb("tl.report", "table_name", group=DATA)] = None,
    coordinate_system: Annotated[
        str, Parameter(group=DATA, help="In which image and shapes are laid over each other.")
    ] = "global",
    port: Annotated[int, Parameter(help="Of the loopback address; 0: any that is free.")] = 0,
    browser: Annotated[bool, Parameter(help="Open the viewer in the browser.")] = True,
    config: Annotated[
        Path | None, Parameter(group=RESULT, help="Write the viewer's configuration to this file, too.")
    ] = None,
) -> None:
    """Look at a store in Vitessce: image, shapes and genes, served from this machine to its own browser.

    The store stays here: it is offered on the loopback address (127.0.0.1) alone, to pages of vitessce.io, until
    Ctrl-C. The viewer itself is a web page, which needs a network; what it reads of the store does not leave the
    machine. Without a network: `stpredict report`, or napari-spatialdata.
    """
    check_store(store)
    # by name: what they import takes seconds, which `stpredict --help` should not
    made = importlib.import_module("stpredict.cli._view_config").configuration(
        store, key=key, gene=gene, image_key=image_key, shapes_key=shapes_key, table_name=table_name,
        coordinate_system=coordinate_system,
    )  # fmt: skip
    importlib.import_module("stpredict.cli._view_server").serve(store, made, port=port, browser=browser, config=config)
