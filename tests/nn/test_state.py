from __future__ import annotations

import hashlib

import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from stpredict.nn.state import sha256_of

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool]
SHAPES: list[tuple[int, ...]] = [(), (0,), (1,), (3,), (2, 5), (4, 0, 2), (3, 1, 2)]


@given(
    forms=st.dictionaries(st.text(max_size=4), st.tuples(st.sampled_from(DTYPES), st.sampled_from(SHAPES)), max_size=6),
    seed=st.integers(0, 9),
)
def test_hash_is_that_of_the_file(forms: dict[str, tuple[torch.dtype, tuple[int, ...]]], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: (100 * torch.rand(shape, generator=generator)).to(dtype) for name, (dtype, shape) in forms.items()}
    assert sha256_of(tensors) == hashlib.sha256(save(tensors)).hexdigest()


def test_hash_knows_every_value_and_every_name() -> None:
    tensors = {"a": torch.arange(6.0), "b": torch.arange(6)}
    before = sha256_of(tensors)
    tensors["a"].data[5] = 0.0
    changed = sha256_of(tensors)
    assert before != changed
    assert sha256_of({"b": tensors["a"], "a": tensors["b"]}) != changed
