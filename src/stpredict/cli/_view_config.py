"""The configuration by which Vitessce shows a store: its image, its shapes, and one gene of a table.

Written by version 1.0.18 of Vitessce's schema for view configurations.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from spatialdata import read_zarr

from stpredict import _spatialdata

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

VERSION = "1.0.18"
URL = "{store}"  # stands for the address of the store until it is served
OPACITY = 0.8


def configuration(
    store: Path, *, key: str | None = None, gene: str | None = None, image_key: str | None = None,
    shapes_key: str | None = None, table_name: str | None = None, coordinate_system: str = "global",
) -> dict[str, Any]:  # fmt: skip
    """What Vitessce is to show of a store, with `URL` for the address of the store.

    Raises ValueError for keys, a gene or a coordinate system that are not there, and for several and no key.
    """
    sdata = read_zarr(store)
    table_name, shapes_key = _annotated(sdata, table_name, shapes_key)
    image_key = _spatialdata.resolve_image(sdata, image_key, shapes_key=shapes_key)
    for element in filter(None, (image_key, shapes_key)):
        if coordinate_system not in (known := _spatialdata.affines(sdata, element)):
            raise ValueError(
                f"{element!r} has no transformation to coordinate_system={coordinate_system!r}; it maps to "
                f"{sorted(known)}."
            )
    options: dict[str, Any] = {"image": {"path": f"images/{image_key}", "coordinateSystem": coordinate_system}}
    layer, values, genes = None, None, None
    if table_name is not None and shapes_key is not None:
        table = sdata.tables[table_name]
        key = _layer(table, key)
        gene = _gene(table, key, gene)
        path = f"tables/{table_name}"
        values = {"path": f"{path}/X" if key is None else f"{path}/layers/{key}", "region": shapes_key}
        if key is not None:
            values["initialFeatureFilterPath"] = f"{path}/var/{key}"
        circles = shapes_key in sdata.shapes and "radius" in sdata.shapes[shapes_key]
        layer = "obsSpots" if circles else "obsSegmentations"
        folder = "shapes" if shapes_key in sdata.shapes else "labels"
        options["obsFeatureMatrix"] = values
        options[layer] = {
            "path": f"{folder}/{shapes_key}", "tablePath": path, "coordinateSystem": coordinate_system,
        }  # fmt: skip
        genes = [gene]
    return _views(options, layer, genes, name=store.stem)


def _annotated(sdata: SpatialData, table_name: str | None, shapes_key: str | None) -> tuple[str | None, str | None]:
    """The table and the shapes that it annotates; (None, None) where there is no table."""
    if table_name is None and shapes_key is None and not sdata.tables:
        return None, None
    if table_name is not None and table_name not in sdata.tables:
        raise _spatialdata.missing_key(table_name, sdata.tables, what="table", argument="table_name")
    if shapes_key is None:
        tables = sdata.tables.values() if table_name is None else [sdata.tables[table_name]]
        regions = {region for table in tables for region in _spatialdata.regions(table)}
        if len(regions) != 1:
            raise ValueError(f"tables annotate {sorted(regions) or 'no shapes'}. Choose one with shapes_key=.")
        (shapes_key,) = regions
    shapes_key = _spatialdata.resolve_shapes(sdata, shapes_key)
    found = _spatialdata.resolve_table(sdata, table_name, shapes_key=shapes_key)
    if found is None:
        raise ValueError(f"no table annotates the shapes {shapes_key!r}. Predict into them first (stp.tl.predict).")
    return found, shapes_key


def _layer(table: AnnData, key: str | None) -> str | None:
    """The layer: the one that is named, else the only predicted one; None: X."""
    layers = [name for name in table.layers.keys() if name is not None]
    predicted = [name for name in layers if name in table.var and table.var[name].dtype == bool]
    if key is None:
        if len(predicted) > 1:
            raise ValueError(f"there are several predicted layers: {predicted}. Choose one with key=.")
        return predicted[0] if predicted else None
    if key not in layers:
        raise _spatialdata.missing_key(key, layers, what="layer", argument="key")
    return key


def _gene(table: AnnData, key: str | None, gene: str | None) -> str:
    """The gene that is shown first: the one that is named, else the best of those that were predicted."""
    shown = np.ones(table.n_vars, dtype=bool)
    if key in table.var and table.var[key].dtype == bool:
        shown = table.var[key].to_numpy()
    names = table.var_names[shown]
    if gene is not None:
        if gene not in names:
            raise _spatialdata.missing_key(gene, names[:200], what="gene", argument="gene")
        return gene
    if f"{key}_val_pcc" in table.var:
        evidence = np.asarray(table.var[f"{key}_val_pcc"], dtype=np.float64)[shown]
        if np.isfinite(evidence).any():
            return str(names[np.nanargmax(evidence)])
    return str(names[0])


def _views(options: dict[str, Any], layer: str | None, genes: list[str] | None, *, name: str) -> dict[str, Any]:
    """Files, coordination and layout: the picture on the left, its layers, genes and a histogram on the right."""
    space: dict[str, Any] = {
        "dataset": {"A": "A"},
        "obsType": {"A": "spot"},
        "imageLayer": {"image": "__dummy__"},
        "photometricInterpretation": {"image": "RGB"},
        "metaCoordinationScopes": {"image": {"imageLayer": ["image"]}},
        "metaCoordinationScopesBy": {"image": {"imageLayer": {"photometricInterpretation": {"image": "image"}}}},
    }
    linked = ["image"]
    own: dict[str, Any] = {"dataset": "A", "obsType": "A"}
    if layer is not None:
        linked.append("shapes")
        own |= {"featureSelection": "A", "obsColorEncoding": "A"}
        space |= {"featureSelection": {"A": genes}, "obsColorEncoding": {"A": "geneSelection"}}
        space["spatialLayerOpacity"] = {"shapes": OPACITY}
        _add_shapes(space, layer)
    meta: dict[str, Any] = {
        "dataset": "A",
        "obsType": "A",
        "metaCoordinationScopes": linked,
        "metaCoordinationScopesBy": linked,
    }
    views: list[tuple[str, dict[str, Any], tuple[int, int, int, int]]] = [
        ("spatialBeta", meta, (0, 0, 8, 12)),
        ("layerControllerBeta", meta, (8, 0, 4, 5)),
    ]
    if layer is not None:
        views += [("featureList", own, (8, 5, 4, 4)), ("featureValueHistogram", own, (8, 9, 4, 3))]
    return {
        "version": VERSION,
        "name": name,
        "description": "Served from this machine by stpredict view",
        "datasets": [
            {
                "uid": "A",
                "name": name,
                "files": [
                    {
                        "fileType": "spatialdata.zarr", "url": URL, "options": options,
                        "coordinationValues": {"obsType": "spot"},
                    }
                ],
            }
        ],
        "coordinationSpace": space,
        "layout": [
            {"component": component, "coordinationScopes": dict(scopes), **dict(zip("xywh", place, strict=True))}
            for component, scopes, place in views
        ],
        "initStrategy": "auto",
    }  # fmt: skip


def _add_shapes(space: dict[str, Any], layer: str) -> None:
    """Colour the shapes by the gene: circles are a layer of spots, all else channels of a segmentation."""
    by = {
        "obsType": {"shapes": "A"}, "featureSelection": {"shapes": "A"}, "obsColorEncoding": {"shapes": "A"},
        "spatialLayerOpacity": {"shapes": "shapes"},
    }  # fmt: skip
    meta, meta_by = space["metaCoordinationScopes"], space["metaCoordinationScopesBy"]
    if layer == "obsSpots":
        space["spotLayer"] = {"shapes": "__dummy__"}
        meta["shapes"], meta_by["shapes"] = {"spotLayer": ["shapes"]}, {"spotLayer": by}
    else:
        space |= {"segmentationLayer": {"shapes": "__dummy__"}, "segmentationChannel": {"shapes": "__dummy__"}}
        meta["shapes"] = {"segmentationLayer": ["shapes"]}
        channels = {"segmentationChannel": {"shapes": ["shapes"]}}
        meta_by["shapes"] = {"segmentationLayer": channels, "segmentationChannel": by}
