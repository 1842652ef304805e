"""Predictions side by side: in threads that share a model, and in a process that was forked after one."""

from __future__ import annotations

import copy
import os
import signal
import threading
import time

import numpy as np
import pytest

RUN = {"device": "cpu", "precision": "32", "progress": False}


def _in_threads(n, run):
    """What `run(i)` raised in n threads that start together."""
    errors, start = [], threading.Barrier(n)

    def guarded(i):
        try:
            start.wait()
            run(i)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the test shows it
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(i,)) for i in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def test_threads_that_share_a_model_from_its_first_use_get_the_answers_of_one(make, pixnet):
    import stpredict as stp

    one = make(7)
    stp.tl.predict(one, pixnet, **RUN)
    wanted = one.tables["table"].layers["pixnet"]
    for _ in range(2):
        new, many = copy.deepcopy(pixnet), [make(7) for _ in range(3)]
        assert not _in_threads(3, lambda i, new=new, many=many: stp.tl.predict(many[i], new, **RUN))
        for each in many:
            np.testing.assert_array_equal(each.tables["table"].layers["pixnet"], wanted)


def test_two_threads_with_one_name_and_store_end_with_one_result_and_one_error(make, pixnet, tmp_path):
    import spatialdata as sd

    import stpredict as stp

    make(7).write(tmp_path / "slide.zarr")
    keys = {"shapes_key": "spots", "key_added": "a"}
    errors = _in_threads(2, lambda i: stp.tl.predict(tmp_path / "slide.zarr", pixnet, output="both", **keys, **RUN))
    (error,) = errors
    assert str(error).startswith((f"process {os.getpid()} on ", "there is a layer"))  # beside it, or just after
    result = sd.read_zarr(tmp_path / "slide.zarr")
    assert "a" in result.images
    assert "a" in result.tables["table"].layers
    assert [path.name for path in tmp_path.iterdir()] == ["slide.zarr"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_process_that_is_forked_after_a_prediction_predicts_too(make, pixnet, tmp_path):
    import spatialdata as sd

    import stpredict as stp

    path = tmp_path / "slide.zarr"
    make(7).write(path)
    stp.tl.predict(path, pixnet, output="both", shapes_key="spots", **RUN)
    pid = os.fork()
    if pid == 0:
        try:
            stp.tl.predict(path, pixnet, output="both", shapes_key="spots", key_added="again", **RUN)
        except BaseException:  # noqa: BLE001 - nothing of pytest may run in the child
            os._exit(1)
        os._exit(0)
    end, status = time.monotonic() + 60, (0, 0)
    while status[0] == 0 and time.monotonic() < end:
        time.sleep(0.05)
        status = os.waitpid(pid, os.WNOHANG)
    if status[0] == 0:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert status == (pid, 0)  # (0, 0): it was still waiting
    layers = sd.read_zarr(path).tables["table"].layers
    np.testing.assert_allclose(layers["again"], layers["pixnet"], atol=1e-5)
