"""Every model on a CUDA device that is not there: nothing mixes devices, and the answers are those of the CPU."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch

from .pretended_cuda import CUDA, OnCuda, pretended_cuda


@pytest.fixture
def untrained(colour_section, build):
    """A function of a model's name: it with random weights everywhere, also where training starts at zero."""

    def make(name):
        model = build(name)
        if name == "PixNet":  # with the context, which is another way through the network
            model = type(model)(config=dataclasses.replace(model.config, context_rank=4))
        with torch.no_grad():
            for k, weight in enumerate(model.parameters()):
                weight.add_(0.01 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(k)))
        return model

    return make


def _fresh(model):
    """A copy, and no features of patches that another device has computed."""
    from stpredict.nn import features

    features._held.clear()
    return copy.deepcopy(model)


def _learnt(model, sections):
    """What a model learns besides its training loop."""
    model.prepare(sections)
    model.to(next(model.parameters(), torch.empty(0)).device)  # the nulls compute on the CPU
    model.finish(sections)
    return {name: value.cpu().clone() for name, value in model.eval().named_buffers()}


def _loss(model, sections, device):
    samples = model.samples(sections, train=True)
    batch = samples.collate([samples[i] for i in range(min(4, len(samples)))]).to(device)
    with torch.no_grad():
        return float(model.loss(batch, model.query(batch.genes)))


def _predicted(model, section, device):
    from stpredict._inference import RuntimeOptions, predict

    runtime = RuntimeOptions(device=str(device), precision="32", progress=False).resolve(model.output)
    return predict(model, section, model.genes, runtime=runtime)[0]


def test_devices_that_meet_are_refused_as_on_a_card():
    with pretended_cuda() as device:
        there, here = torch.ones(3, device=device), torch.ones(3)
        assert isinstance(there, OnCuda)
        assert there.is_cuda
        assert (there + 1).cpu().tolist() == [2.0, 2.0, 2.0]
        there[1:] = 5.0
        assert there.tolist() == [1.0, 5.0, 5.0]
        for mixed in (lambda: there + here, lambda: torch.cat([here, there]), lambda: there.mul_(here)):
            with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
                mixed()
        with pytest.raises(RuntimeError, match="not supported"):
            there.numpy()


@pytest.mark.slow
def test_what_a_model_learns_loses_and_predicts_is_that_of_the_cpu(untrained, colour_section, model_name):
    sections, section = [colour_section(0), colour_section(1)], colour_section(2)
    model = untrained(model_name)
    here = _fresh(model)
    learnt, loss = _learnt(here, sections), _loss(here, sections, "cpu")
    values = _predicted(here, section, "cpu")
    there = _fresh(model)
    with pretended_cuda() as device:
        there.to(device)
        found, lost = _learnt(there, sections), None
        there.to(device)
        lost = _loss(there, sections, device)
        got = _predicted(there, section, CUDA)
        assert all(each.is_cuda for each in there.state_dict().values())
    assert set(found) == set(learnt)
    for name, value in learnt.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4)
    assert lost == pytest.approx(loss, rel=1e-4)
    assert np.isfinite(got).all()
    assert np.abs(got - values).max() <= 1e-4 * max(values.std(), 1e-6)
