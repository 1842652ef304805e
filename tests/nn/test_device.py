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


def test_bf16_that_a_card_only_emulates_is_not_chosen(monkeypatch):
    import contextlib

    import torch

    from stpredict.nn.device import resolve_precision

    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    for in_hardware, chosen in ((False, "32-true"), (True, "bf16-mixed")):
        monkeypatch.setattr(
            torch.cuda,
            "is_bf16_supported",
            lambda including_emulation=True, has=in_hardware: including_emulation or has,
        )
        assert resolve_precision("auto", torch.device("cuda:1")) == chosen


def test_the_free_memory_is_that_of_the_device(monkeypatch):
    import psutil
    import torch

    from stpredict.nn.device import free_bytes

    assert 0 < free_bytes(torch.device("cpu")) <= psutil.virtual_memory().total
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 5000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 300)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 100)
    assert free_bytes(torch.device("cuda:0")) == 1200
