"""A CUDA device that is not there: tensors that say they are on it, compute on the CPU, and refuse to meet others.

What mixes devices fails as it would on a card, and values are real, so that whole predictions can be compared.
Gradients are not followed: the engine that does so asks for the driver.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

CUDA = torch.device("cuda:0")
aten = torch.ops.aten
# operators that take a tensor of the CPU beside those of a card: copies between both, and indices
MIXING = {aten.copy_, aten._to_copy, aten.index, aten.index_put_, aten.index_put, aten._index_put_impl_}
# their own code asks for the driver
ASKING = {
    getattr(torch.Tensor, f"__{name}__") for name in ("getitem", "setitem", "float", "int", "index", "bool", "invert")
}
ASKING |= {torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.masked_fill, torch.Tensor.contiguous}


class OnCuda(torch.Tensor):
    """A tensor that lies on the pretended device."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> OnCuda:
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=CUDA, requires_grad=False,
        )  # fmt: skip

    def __init__(self, inner: torch.Tensor) -> None:
        self.inner = inner

    def __repr__(self) -> str:
        return f"OnCuda({self.inner})"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__
        in_place = name.endswith("_") and not name.endswith("__")
        if func in ASKING or in_place:
            if in_place and func is not torch.Tensor.copy_:
                _check(func, args)
            out = func(*tree_map(_inner, args), **tree_map(_inner, kwargs or {}))
            return args[0] if in_place else cls(out) if isinstance(out, torch.Tensor) else out
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


def _check(func: Any, values: Any) -> None:
    tensors = [each for each in values if isinstance(each, torch.Tensor)]
    kinds = {isinstance(each, OnCuda) for each in tensors if isinstance(each, OnCuda) or each.ndim > 0}
    if len(kinds) > 1:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but {func} got some on {CUDA} and some on cpu, of shapes "
            f"{[tuple(each.shape) for each in tensors]}"
        )


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, OnCuda) else value


class Pretending(TorchDispatchMode):
    """Sees what is made on a device, or brought there from the CPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


class Made(TorchFunctionMode):
    """Brings to the device what is made of numbers there: that code asks for the driver too."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        asked = kwargs.get("device")
        if func in (torch.tensor, torch.as_tensor) and asked is not None and torch.device(asked).type == "cuda":
            return OnCuda(func(*args, **kwargs | {"device": torch.device("cpu")}))
        return func(*args, **kwargs)


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Compute on the CPU, and give the result the device that it would have. RuntimeError where devices meet."""
    tensors = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, torch.Tensor)]
    there = any(isinstance(each, OnCuda) for each in tensors)
    if func.overloadpacket not in MIXING:
        _check(func, tensors)
    asked = kwargs.get("device")
    to_cuda = there if asked is None else torch.device(asked).type == "cuda"
    if asked is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    kwargs.pop("pin_memory", None)
    args, kwargs = tree_map(_inner, (args, kwargs))
    out = func(*args, **kwargs)
    if func._schema.name.endswith("_") and there:
        return tensors[0]
    return tree_map(lambda each: OnCuda(each) if isinstance(each, torch.Tensor) and to_cuda else each, out)


class InThisThread:
    """Stands in for a pool of threads, in which torch's modes, and with them the device, would not be there."""

    def __init__(self, _: int) -> None: ...

    def __enter__(self) -> InThisThread:
        return self

    def __exit__(self, *_: object) -> None: ...

    def submit(self, work: Callable[[Any], Any], item: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(work(item))
        except Exception as error:  # noqa: BLE001 - as a pool does
            done.set_exception(error)
        return done


@contextmanager
def pretended_cuda() -> Iterator[torch.device]:
    """Within it there is one CUDA device."""
    patches = (
        mock.patch("torch.cuda._lazy_init", lambda: None),
        mock.patch("torch.cuda.is_available", lambda: True),
        mock.patch("torch.cuda.device_count", lambda: 1),
        mock.patch("torch.cuda.is_bf16_supported", lambda including_emulation=True: True),
        mock.patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False),
        mock.patch("torch.cuda.mem_get_info", lambda device: (2**34, 2**35)),
        mock.patch("torch.cuda.memory_reserved", lambda device: 0),
        mock.patch("torch.cuda.memory_allocated", lambda device: 0),
        mock.patch("torch.Tensor.pin_memory", lambda self: self),
        mock.patch("stpredict._prefetch.ThreadPoolExecutor", InThisThread),
        # tensors of inference mode have no version, which views of a subclass ask for; gradients are off below
        mock.patch("torch.inference_mode.__enter__", lambda self: None),
        mock.patch("torch.inference_mode.__exit__", lambda self, *_: None),
    )
    plain = (torch.backends.cudnn.flags(enabled=False), sdpa_kernel(SDPBackend.MATH))  # kernels that the CPU has too
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # else weights keep their type
    try:
        with ExitStack() as stack:
            for each in (*patches, *plain, torch.no_grad(), Made(), Pretending()):
                stack.enter_context(each)
            yield CUDA
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)
