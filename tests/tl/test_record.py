"""The fields of a result's record: all that are written are declared, and all that decide a result are compared."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from stpredict._record import FIELDS, differences, fields_of, of_one_result

# what of a call decides where a result goes, or how it is watched, but not what it is
OF_THE_PLACE = {"key", "table_name", "table_added", "overwrite", "resume", "progress", "label"}
BY_DIGEST = {"spec"}  # image, shapes, mpp and tissue: their digests are in the record


@pytest.fixture(scope="module")
def request_of(pixnet):
    """A request of `tl.predict` as it stands when the work begins."""
    import torch

    from stpredict._inference import Runtime
    from stpredict._spatialdata import SectionSpec
    from stpredict.tl._predict._request import Output, PredictRequest

    return PredictRequest(
        model=pixnet, genes=["red"], key="it", output=Output.parse("both"), spec=SectionSpec(), table_name=None,
        table_added=None, raster_mpp=None, dtype="float32", overwrite=False, resume=False,
        runtime=Runtime(torch.device("cpu"), "32-true", 1),
    )  # fmt: skip


def inputs(request):
    from stpredict._section import Fingerprint
    from stpredict.tl._predict._provenance import provenance, run_inputs

    return run_inputs(request, provenance(request, Fingerprint("image", "shapes")))


def test_whatever_decides_a_result_decides_whether_a_run_is_gone_on_with(request_of, ridge):
    import torch

    from stpredict.tl._predict._request import Output

    other = {
        "model": ridge, "genes": ["blue"], "output": Output.parse("raster"), "raster_mpp": 4.0, "dtype": "float16",
    }  # fmt: skip
    runtime = {"device": torch.device("cuda"), "precision": "bf16-mixed", "batch_size": 2, "compile": True}
    declared = {field.name for kind in (request_of, request_of.runtime) for field in fields(kind)}
    assert declared == {*other, *runtime, "runtime"} | OF_THE_PLACE | BY_DIGEST  # a new field is decided on here
    before = inputs(request_of)
    for name, value in other.items():
        assert inputs(replace(request_of, **{name: value})) != before, name
    for name, value in runtime.items():
        assert inputs(replace(request_of, runtime=replace(request_of.runtime, **{name: value}))) != before, name


def test_every_field_that_is_written_is_declared(make, pixnet, request_of):
    import stpredict as stp

    run = {"device": "cpu", "precision": "32", "progress": False}
    sdata = make(7)
    stp.tl.predict(sdata, pixnet, output="both", **run)
    stp.tl.predict(sdata, pixnet, output="latent", key_added="latent", **run)
    stp.tl.query(sdata, "latent", ["red"], model=pixnet, output="both", key_added="asked")
    stp.tl.aggregate(sdata, "pixnet", shapes_key="spots", key_added="read")
    stp.tl.embed(sdata, pixnet, **run)
    records = {**sdata.tables["table"].uns["stpredict"], **sdata.attrs["stpredict"], "a run": inputs(request_of)}
    assert len(records) >= 7
    for name, record in records.items():
        assert set(record) <= set(FIELDS), name
    written = {field for record in records.values() for field in record}
    of_some_models = {"revision", "n_models", "unseen_genes", "texts_digest", "held_out", "held_out_um2"}
    assert set(FIELDS) - written <= of_some_models


def test_what_two_results_differ_in():
    made = {"weights_sha256": "a", "genes": ["red"], "shapes_digest": "s", "dtype": "float32", "device": "cpu"}
    assert differences(made, made, "layer") == set()
    assert differences(made, {**made, "weights_sha256": "b", "shapes_digest": "t"}, "layer") == {"model", "shapes"}
    assert differences(made, {**made, "shapes_digest": "t", "dtype": "float16"}, "raster") == {"dtype"}
    assert differences(made, {**made, "device": "cuda", "mpp": 2.0}, "layer") == set()  # older ones have no mpp
    assert differences({}, made, "layer") == {"model", "genes"}


@pytest.mark.parametrize("name", list(FIELDS))
def test_samples_of_one_result_differ_in_what_is_of_a_sample_alone(name):
    made = dict.fromkeys(FIELDS, "one")
    assert of_one_result(made, {**made, name: "other"}) == (name in fields_of("sample"))
    assert not of_one_result({}, {})
