"""Fold batch norms in eval mode into the preceding convolutions, for prediction and in training."""

from __future__ import annotations

import copy
import hashlib
import logging
import threading
import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

logger = logging.getLogger("stpredict")
KINDS = (nn.Conv2d, nn.BatchNorm2d)
Pairs = list[tuple[str, str]]

TOLERANCE = 1e-3  # of the output's standard deviation; folding leaves 1e-6

# by model: its state when it was probed, and the (convolution, norm) to fold
_seen: weakref.WeakKeyDictionary[nn.Module, tuple[bytes, Pairs]] = weakref.WeakKeyDictionary()
# by network in training: its device and parameters, a copy without the norms, and what is folded in it
_twins: weakref.WeakKeyDictionary[nn.Module, tuple[tuple[torch.device, tuple[int, ...]], nn.Module, Pairs]] = (
    weakref.WeakKeyDictionary()
)
_probing = threading.RLock()  # cudnn's flags are of the whole process, and a model is probed once for all threads
HOOKS = (
    "_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called",
    "_forward_pre_hooks_with_kwargs",
)  # fmt: skip


def folded[M: nn.Module](model: M, probe: Callable[[M], Tensor]) -> M:
    """The same function with fewer steps: a copy whose batch norms are part of the convolutions that feed them.

    Several threads may ask for the same model: one of them probes it, and the others wait.

    Parameters
    ----------
    model : M
        In eval mode; it stays as it is, and the copy shares all weights that are not folded.
    probe : Callable[[M], Tensor]
        Runs a model on some image. Which norm follows which convolution is seen by running it, and the folded copy must
        give the same, else the model itself comes back. Not run again as long as the model's parts and weights stay.
    """
    if not _norms(model) or model.training:
        return model
    with _probing:
        state, known = _state(model), _seen.get(model)
        pairs = known[1] if known is not None and known[0] == state else _pairs(model, probe)
        if pairs is None:
            return model
        _seen[model] = state, pairs
    return _fold_all(copied(model), pairs)


def folded_call(net: nn.Module, *given: Tensor, probe: Callable[[nn.Module], Tensor]) -> Any:
    """What a network gives for some input, computed with its batch norms folded into its convolutions.

    Gradients reach the weights of both, as they do in the network itself: the weights of a folded convolution are
    computed anew in every call.

    Parameters
    ----------
    net : nn.Module
        Its batch norms are in eval mode; they and all else stay as they are.
    probe : Callable[[nn.Module], Tensor]
        As for `folded`; run again only where the network has moved to another device, has other parameters or buffers,
        or a part of it has changed between training and eval mode. Its parts must stay otherwise.
    """
    held = (*net.parameters(), *net.buffers(), *(module.training for module in net.modules()))
    state = next(net.parameters()).device, tuple(each if isinstance(each, bool) else id(each) for each in held)
    known = _twins.get(net)
    if known is None or known[0] != state:
        with _probing:
            pairs = _pairs_in_eval(net, probe)
        twin = _fold_all(copied(net), pairs)
        if state[0].type == "cpu":
            _strided_in_float32(twin)
        known = _twins[net] = state, twin, pairs
    _, twin, pairs = known
    weights = {}
    for conv, norm in pairs:
        weights[f"{conv}.weight"], weights[f"{conv}.bias"] = _joined(net.get_submodule(conv), net.get_submodule(norm))
    return functional_call(twin, weights, given)


def copied[M: nn.Module](model: M, replaced: dict[nn.Module, nn.Module] | None = None) -> M:
    """The model and its parts anew, with the same weights; hooks that are added to one are not in the other.

    Parameters
    ----------
    replaced : dict[nn.Module, nn.Module]
        Parts that are to be others in the copy, by the part.
    """
    replaced = replaced or {}
    twins = {part: replaced[part] if part in replaced else _bare_copy(part) for part in model.modules()}
    for part, twin in twins.items():  # a part that is used twice stays one
        if part not in replaced:
            twin._modules = {name: child if child is None else twins[child] for name, child in part._modules.items()}
    return twins[model]  # type: ignore[return-value]


def _bare_copy(part: nn.Module) -> nn.Module:
    """A module with hooks, parameters and buffers of its own, but the children of the original."""
    twin = copy.copy(part)
    kinds = dict.fromkeys(HOOKS, OrderedDict) | dict.fromkeys(("_parameters", "_buffers"), dict)
    for name, kind in kinds.items():
        if name in vars(twin):  # setting attributes of modules is slow
            vars(twin)[name] = kind(vars(twin)[name])
        else:  # a traced module has them behind properties
            setattr(twin, name, kind(getattr(part, name)))
    return twin


def _pairs[M: nn.Module](model: M, probe: Callable[[M], Tensor]) -> Pairs | None:
    kind = next(model.parameters()).device.type
    exact = (
        torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False),
        torch.autocast(kind, enabled=False),
    )
    with torch.inference_mode(False), torch.no_grad(), exact[0], exact[1]:
        watched = copied(model)  # another thread may be running the model itself
        with _watching(watched) as found:
            before = probe(watched).float()
        names = {module: name for name, module in watched.named_modules()}
        pairs = [(names[conv], names[norm]) for norm, conv in found.items()]
        after = probe(_fold_all(copied(model), pairs)).float()
    apart = float((after - before).abs().max() / before.std().clamp_min(1e-12))
    if not apart <= TOLERANCE:
        logger.warning("batch norms are not folded: the output would differ by %.1e of its spread", apart)
        return None
    logger.info("folded %d of %d batch norms into convolutions", len(pairs), len(_norms(model)))
    return pairs


def _pairs_in_eval(net: nn.Module, probe: Callable[[nn.Module], Tensor]) -> Pairs:
    modes = {module: module.training for module in net.modules()}
    try:
        return _pairs(net.eval(), probe) or []
    finally:
        for module, mode in modes.items():
            module.training = mode


def _strided_in_float32(twin: nn.Module) -> None:
    """Keep strided depth-wise convolutions out of autocast: their gradient in bfloat16 is slow on the CPU."""
    for conv in twin.modules():
        if isinstance(conv, nn.Conv2d) and conv.groups == conv.in_channels > 1 and max(conv.stride) > 1:
            conv.forward = partial(_in_float32, conv)  # type: ignore[method-assign]


def _in_float32(conv: nn.Conv2d, image: Tensor) -> Tensor:
    with torch.autocast(image.device.type, enabled=False):
        return type(conv).forward(conv, image.float()).to(image.dtype)


@torch.no_grad()
def _fold_all[M: nn.Module](twin: M, pairs: Pairs) -> M:
    norms = {twin.get_submodule(norm) for _, norm in pairs}
    for conv, norm in pairs:
        _fold(twin.get_submodule(conv), twin.get_submodule(norm))
    _take_out(twin, norms)
    return twin


def _state(model: nn.Module) -> bytes:
    """What folding depends on: the parts and their settings, and every weight, where it lies, and its version."""
    found = hashlib.sha256(repr(model).encode())
    for name, module in model.named_modules():
        found.update(f"{name} {module.training}".encode())
        folds = isinstance(module, KINDS)
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            version = "" if tensor.is_inference() else tensor._version
            found.update(f"{id(tensor)} {version} {tensor.device} {tensor.dtype}".encode())
            if folds:  # what is written into `.data` has no version
                found.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return found.digest()


def _norms(module: nn.Module) -> list[nn.BatchNorm2d]:
    return [m for m in module.modules() if isinstance(m, nn.BatchNorm2d) and m.running_mean is not None]


@contextmanager
def _watching(model: nn.Module) -> Iterator[dict[nn.BatchNorm2d, nn.Conv2d]]:
    """While the model runs once: the convolution that each norm alone reads, where both run once; filled at the end."""
    made: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # the tensors are held, so that no id comes back
    read: dict[nn.BatchNorm2d, nn.Conv2d] = {}
    found: dict[nn.BatchNorm2d, nn.Conv2d] = {}
    runs: Counter[nn.Module] = Counter()

    def conv_ran(conv: nn.Conv2d, _: Any, out: Tensor) -> None:
        made[id(out)] = conv, out
        runs[conv] += 1

    def norm_runs(norm: nn.BatchNorm2d, given: tuple[Tensor, ...]) -> None:
        runs[norm] += 1
        if id(given[0]) in made:
            read[norm] = made[id(given[0])][0]

    hooks = [m.register_forward_hook(conv_ran) for m in model.modules() if isinstance(m, nn.Conv2d)]
    hooks += [m.register_forward_pre_hook(norm_runs) for m in _norms(model)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
    shared = Counter(read.values())
    found |= {n: c for n, c in read.items() if runs[n] == runs[c] == shared[c] == 1 and not n.training}


def _fold(conv: nn.Module, norm: nn.Module) -> None:
    weight, bias = _joined(conv, norm)
    conv.weight, conv.bias = nn.Parameter(weight), nn.Parameter(bias)


def _joined(conv: nn.Module, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that does what both do."""
    assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None and norm.running_var is not None
    scale = torch.rsqrt(norm.running_var + norm.eps)
    scale = scale if norm.weight is None else scale * norm.weight
    shift = torch.zeros_like(scale) if norm.bias is None else norm.bias
    bias = torch.zeros_like(scale) if conv.bias is None else conv.bias
    return conv.weight * scale[:, None, None, None], (bias - norm.running_mean) * scale + shift


def _take_out(model: nn.Module, norms: set[nn.Module]) -> None:
    """Replace each norm by what it does besides normalising: nothing, or the activation that timm's norms have."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child in norms:
                rest = [getattr(child, each) for each in ("drop", "act") if hasattr(child, each)]
                setattr(parent, name, nn.Sequential(*rest) if rest else nn.Identity())
