"""What "auto" means, and what is refused."""

from __future__ import annotations

import logging

import pytest


def test_auto_says_what_it_chose(caplog):
    import torch

    from stpredict.nn.device import resolve_device, resolve_precision

    with caplog.at_level(logging.INFO, logger="stpredict"):
        device = resolve_device("auto")
        resolve_precision("auto", device)
    assert f"device='auto' chose {device.type}" in caplog.text
    assert "precision='auto' chose" in caplog.text
    assert torch.device(device.type) == device


def test_a_device_that_is_not_there_is_refused():
    from stpredict.nn.device import resolve_device

    with pytest.raises(ValueError, match=r"device='cuda:7' is not there; this machine has cpu x 1.*Pass device='cpu'"):
        resolve_device("cuda:7")
    with pytest.raises(ValueError, match="device='abacus' is no device: use 'auto', 'cpu'"):
        resolve_device("abacus")


def test_an_unknown_precision_is_refused():
    import torch

    from stpredict.nn.device import resolve_precision

    assert resolve_precision("32", torch.device("cpu")) == "32-true"
    with pytest.raises(ValueError, match="precision='64' is unknown: use 'auto', '32', 'bf16' or '16'"):
        resolve_precision("64", torch.device("cpu"))
