"""Folded batch norms: the same function, fewer steps, and the model itself untouched."""

from __future__ import annotations

import copy
import gc
import threading
import weakref

import pytest
import torch
from torch import nn

from stpredict.nn.encoders import Encoder, EncoderSpec
from stpredict.nn.fold import folded, folded_call


class Branches(nn.Module):
    """A norm after a convolution, one after an activation, one that shares its convolution, and one that runs twice."""

    def __init__(self):
        super().__init__()
        self.body = nn.ModuleDict(
            {name: nn.Conv2d(3 if name == "a" else 4, 4, 3, padding=1, bias=name == "b") for name in "abcd"}
            | {f"{name}_norm": nn.BatchNorm2d(4) for name in "abcd"}
        )
        self.tail = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        b = self.body
        x = b["a_norm"](b["a"](x))
        x = b["b_norm"](torch.relu(b["b"](x)))
        y = b["c"](x)
        x = b["c_norm"](y) + y
        x = b["d_norm"](b["d"](b["d_norm"](b["d"](x))))
        return self.tail(x)


def _with_statistics(model):
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean):
                nn.init.normal_(tensor)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model.eval()


class OnlyPairs(Branches):
    def forward(self, x):
        b = self.body
        x = b["a_norm"](b["a"](x))
        x = b["b_norm"](torch.relu(b["b"](x)))
        return self.tail(b["d_norm"](b["d"](b["d_norm"](b["d"](x)))))


def _count(model):
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def test_a_norm_alone_behind_a_convolution_is_folded_and_others_are_not():
    model, image = _with_statistics(OnlyPairs()), torch.randn(2, 3, 8, 8)
    wanted, weights = model(image), {k: v.clone() for k, v in model.state_dict().items()}
    twin = folded(model, lambda m: m(image))
    assert _count(twin) == 3
    torch.testing.assert_close(twin(image), wanted, rtol=1e-4, atol=1e-5)
    for key, value in model.state_dict().items():
        assert torch.equal(value, weights[key])


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_part_that_was_traced_stays_as_it_is():
    x = torch.randn(2, 3, 16, 16)
    traced = torch.jit.trace(nn.Conv2d(3, 4, 3).eval(), x)
    model = _with_statistics(nn.Sequential(traced, nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)))
    fast = folded(model, lambda each: each(x))
    assert (_count(model), _count(fast)) == (1, 0)
    torch.testing.assert_close(fast(x), model(x))


def test_direct_children_stay_as_they_are_too():
    model, image = _with_statistics(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))), torch.randn(2, 3, 8, 8)
    wanted = model(image)
    for _ in range(2):
        twin = folded(model, lambda m: m(image))
        assert _count(twin) == 0
        torch.testing.assert_close(twin(image), wanted, rtol=1e-4, atol=1e-5)
        assert torch.equal(model(image), wanted)


def test_a_convolution_that_something_else_reads_too_is_noticed(caplog):
    model, image = _with_statistics(Branches()), torch.randn(2, 3, 8, 8)
    assert folded(model, lambda m: m(image)) is model
    assert "batch norms are not folded: the output would differ" in caplog.text


def test_a_model_in_training_and_one_without_norms_come_back():
    model, image = Branches().train(), torch.randn(2, 3, 8, 8)
    assert folded(model, lambda m: m(image)) is model
    plain = nn.Sequential(nn.Conv2d(3, 2, 1)).eval()
    assert folded(plain, lambda m: m(image)) is plain


@pytest.mark.parametrize("name", ["mobilenetv2_050", "resnet18"])
def test_encoders_of_timm(name):
    import timm

    model = nn.Sequential()
    model.net = timm.create_model(name, pretrained=False, features_only=True)
    _with_statistics(model)
    n, image = _count(model), torch.randn(1, 3, 64, 64)
    twin = folded(model, lambda m: m.net(image)[2])
    assert n > 15
    assert _count(twin) < n
    torch.testing.assert_close(twin.net(image)[2], model.net(image)[2], rtol=1e-3, atol=1e-3)


def test_a_model_is_probed_once_until_its_weights_change():
    model, image = _with_statistics(OnlyPairs()), torch.randn(2, 3, 8, 8)
    runs = []

    def probe(m):
        runs.append(m)
        return m(image)

    first = folded(model, probe)
    model.note = "new"
    second = folded(model, probe)
    assert len(runs) == 2  # before and after, once
    assert _count(first) == _count(second) == 3
    assert second.note == "new"
    assert second.tail.weight is model.tail.weight  # what was not folded takes no memory of its own
    model.body["a"].weight.data.mul_(2.0)
    third = folded(model, probe)
    assert len(runs) == 4
    torch.testing.assert_close(third(image), model(image), rtol=1e-4, atol=1e-5)


def test_what_is_set_in_a_part_after_the_probe_counts():
    class Scaled(OnlyPairs):
        def __init__(self):
            super().__init__()
            self.body.register_buffer("by", torch.ones(()))

        def forward(self, x):
            return super().forward(x) * self.body.by

    model, image = _with_statistics(Scaled()), torch.randn(2, 3, 8, 8)
    once = folded(model, lambda m: m(image))(image)
    model.body.by = torch.tensor(3.0)
    torch.testing.assert_close(folded(model, lambda m: m(image))(image), 3 * once)


def test_nothing_is_kept_of_a_model_that_is_gone():
    model, image = _with_statistics(OnlyPairs()), torch.randn(2, 3, 8, 8)
    gone = weakref.ref(model)
    folded(model, lambda m: m(image))
    del model
    gc.collect()
    assert gone() is None


def test_a_norm_that_goes_back_to_training_is_folded_no_more():
    model, image = _with_statistics(OnlyPairs()), torch.randn(2, 3, 8, 8)
    assert _count(folded(model, lambda m: m(image))) == 3
    model.body["a_norm"].train()
    model.body["a_norm"].momentum = 0.0  # its statistics stay
    twin = folded(model, lambda m: m(image))
    assert _count(twin) == 4
    torch.testing.assert_close(twin(image), model(image), rtol=1e-4, atol=1e-5)


def _gradients(model, out):
    model.zero_grad()
    out.square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_a_folded_call_gives_the_values_and_the_gradients_of_the_network_itself():
    model, image = _with_statistics(OnlyPairs()), torch.randn(2, 3, 8, 8)
    wanted = model(image)
    gradients = _gradients(model, wanted)
    out = folded_call(model, image, probe=lambda net: net(torch.ones(1, 3, 8, 8)))
    torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-5)
    found = _gradients(model, out)
    assert set(found) == set(gradients)
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-4 * float(gradient.abs().max()), msg=name)


def test_a_folded_call_follows_mode_and_buffers():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)).eval()
    image, probe = torch.randn(2, 3, 8, 8), lambda net: net(torch.ones(1, 3, 8, 8))
    torch.testing.assert_close(folded_call(net, image, probe=probe), net(image))
    net[2].train()
    assert (folded_call(net, image, probe=probe) == 0).any()
    net[2].eval()
    torch.testing.assert_close(folded_call(net, image, probe=probe), net(image))
    net[1].running_mean = torch.full((4,), 3.0)
    torch.testing.assert_close(folded_call(net, image, probe=probe), net(image))


def test_a_folded_call_follows_the_weights_after_a_step():
    model, image = _with_statistics(OnlyPairs()), torch.randn(2, 3, 8, 8)
    folded_call(model, image, probe=lambda net: net(torch.ones(1, 3, 8, 8)))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.5)
    out = folded_call(model, image, probe=lambda net: net(torch.ones(1, 3, 8, 8)))
    torch.testing.assert_close(out, model(image), rtol=1e-5, atol=1e-5)


def test_an_encoder_in_training_has_the_gradients_of_its_network_and_keeps_its_modes():
    torch.manual_seed(0)
    encoder = Encoder(EncoderSpec("mobilenetv2_050", (1, 2, 3, 4)), weights=None)
    _with_statistics(encoder)
    image = torch.rand(2, 3, 64, 64)
    wanted = encoder(image)
    plain = _gradients(encoder, torch.cat([x.flatten() for x in wanted]))
    encoder.train()
    modes = {name: module.training for name, module in encoder.named_modules()}
    found = encoder(image)
    assert modes == {name: module.training for name, module in encoder.named_modules()}
    for got, of in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, of, rtol=1e-3, atol=1e-3 * float(of.detach().abs().max()))
    gradients = _gradients(encoder, torch.cat([x.flatten() for x in found]))
    assert set(gradients) == set(plain)
    for name, gradient in plain.items():
        torch.testing.assert_close(
            gradients[name], gradient, rtol=1e-2, atol=1e-3 * float(gradient.abs().max() + 1e-6), msg=name
        )


def test_threads_that_share_a_new_model_fold_it_once_each_as_one_thread_does():
    image = torch.randn(2, 3, 8, 8)
    for _ in range(5):
        model, runs, errors, start = _with_statistics(OnlyPairs()), [], [], threading.Barrier(4)
        with torch.no_grad():
            wanted = folded(copy.deepcopy(model), lambda m: m(image))(image)
        probes = []

        def probe(m, probes=probes):
            probes.append(m)
            return m(image)

        def run(model=model, probe=probe, runs=runs, errors=errors, start=start):
            try:
                start.wait()
                with torch.no_grad():
                    twin = folded(model, probe)
                    runs.extend(twin(image) for _ in range(20))
            except BaseException as error:  # noqa: BLE001 - whatever it is, the test shows it
                errors.append(error)

        threads = [threading.Thread(target=run) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        assert all(torch.allclose(out, wanted, rtol=0, atol=1e-5) for out in runs)  # convolutions round by thread
        assert len(runs) == 80
        assert len(probes) == 2  # before and after, by the first thread alone


def test_the_model_that_is_probed_never_carries_a_hook_of_ours():
    model, image, seen = _with_statistics(OnlyPairs()), torch.randn(2, 3, 8, 8), []

    def probe(m):
        seen.append(sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in model.modules()))
        return m(image)

    folded(model, probe)
    assert seen == [0, 0]
