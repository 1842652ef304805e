"""Read tensors of untrusted safetensors files, and compare them with those of a network."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.overrides import TorchFunctionMode

_DRAWS = frozenset(
    "normal_ uniform_ trunc_normal_ kaiming_normal_ kaiming_uniform_ xavier_normal_ xavier_uniform_ erfinv_".split()
)
COUNTER = "num_batches_tracked"  # of batch norms; nothing at inference depends on it
_DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32,
    "I64": torch.int64, "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
}  # fmt: skip


def read_header(path: Path) -> dict[str, Tensor]:
    """Names, shapes and types of the tensors in a file, as tensors without memory (device "meta").

    Raises
    ------
    ValueError
        For what is no safetensors file or holds another type of number; it names the file.
    """
    found = {}
    try:
        with safe_open(path, "pt") as file:
            for name in file.keys():
                part = file.get_slice(name)
                dtype = _DTYPES.get(part.get_dtype())
                if dtype is None:
                    raise ValueError(f"{path}: tensor {name!r} has numbers of type {part.get_dtype()}, not read here.")
                found[name] = torch.empty(part.get_shape(), dtype=dtype, device="meta")
    except (SafetensorError, OverflowError, RuntimeError, TypeError) as error:
        raise ValueError(f"{path} is no .safetensors file, or a damaged one ({error}).") from error
    return found


def read_tensors(path: Path, names: Collection[str] | None = None) -> dict[str, Tensor]:
    """The tensors of a file, or those of these names.

    Raises
    ------
    ValueError
        For a damaged one, and the tensor where one holds NaN or infinite values; it names the file.
    """
    found = {}
    try:
        with safe_open(path, "pt") as file:
            for name in file.keys():
                if names is None or name in names:
                    found[name] = file.get_tensor(name)
    except (SafetensorError, OverflowError, RuntimeError, TypeError) as error:
        raise ValueError(f"{path} is no .safetensors file, or a damaged one ({error}).") from error
    check_values(found, path)
    return found


def check_values(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raise ValueError naming the first tensor with values that are no numbers, or a variance below 0."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"{path}: tensor {name!r} has NaN or infinite values; training diverged or it is damaged.")
        leaf = name.rpartition(".")[2]
        if leaf == "running_var" and (tensor < 0).any():
            raise ValueError(f"{path}: tensor {name!r} has values below 0, and a variance has none; it is damaged.")


def differences(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], *, cast: bool = False) -> str:
    """How the tensors of a file differ from those that are wanted, by name, shape and type; "" where they fit.

    Counters of batches may be missing. With `cast`, numbers of another type will do.
    """
    missing = sorted(key for key in set(wanted) - set(found) if key.rpartition(".")[2] != COUNTER)
    unknown = sorted(set(found) - set(wanted))
    if missing or unknown:
        return (
            f"missing tensors {missing[:3]} ({len(missing)}), unknown tensors {unknown[:3]} ({len(unknown)}), of "
            f"{len(wanted)}"
        )
    wrong = [key for key in found if _form(found[key])[: 2 - cast] != _form(wanted[key])[: 2 - cast]]
    if not wrong:
        return ""
    key = wrong[0]
    (shape, dtype), (wanted_shape, wanted_dtype) = _form(found[key]), _form(wanted[key])
    said = f"{shape} for {wanted_shape}" if shape != wanted_shape else f"{dtype} for {wanted_dtype}"
    return f"{len(wrong)} tensors have another shape or type, such as {key}: {said}"


def sha256_of(tensors: Mapping[str, Tensor]) -> str:
    """The hash of the file that safetensors makes of contiguous tensors on the CPU; no copy of them is made."""
    header, names = _header(tuple((name, tensor.dtype, tensor.shape) for name, tensor in tensors.items()))
    found = hashlib.sha256(header)
    for name in names:
        found.update(tensors[name].reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


@lru_cache(maxsize=16)
def _header(forms: tuple[tuple[str, torch.dtype, torch.Size], ...]) -> tuple[bytes, list[str]]:
    """What such a file begins with, and the names of its tensors in the order in which they follow."""
    file = save({name: torch.empty(shape, dtype=dtype) for name, dtype, shape in forms})
    end = 8 + int.from_bytes(file[:8], "little")
    places = {name: entry["data_offsets"] for name, entry in json.loads(file[8:end]).items() if name != "__metadata__"}
    return file[:end], sorted(places, key=places.__getitem__)


class Undrawn(TorchFunctionMode):
    """While it is entered, in this thread, the first weights of networks are not drawn: a file will give them.

    Modules are built as else; what would fill a tensor at random leaves it as it is.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The function itself, or its tensor where it would draw."""
        if getattr(func, "__name__", "") in _DRAWS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def _form(tensor: Tensor) -> tuple[tuple[int, ...], Any]:
    return tuple(tensor.shape), tensor.dtype
