"""Constructors of models: arguments are checked, and first weights depend on a seed alone."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps

import torch

from stpredict._arguments import check_arguments

_FIRST_SEED: ContextVar[int] = ContextVar("seed of first weights", default=0)


def constructor[**P](init: Callable[P, None]) -> Callable[P, None]:
    """Make a constructor check its arguments, draw weights by its `seed`, and leave torch's generator as it was.

    The same arguments then give the same model, whatever was drawn before: a run is repeated by the seeds it names.
    Weights are drawn on the CPU; those that `torch.set_default_device` puts elsewhere are not of the seed.
    """

    @wraps(init)
    def made(*args: P.args, **kwargs: P.kwargs) -> None:
        given = inspect.signature(init).bind(*args, **kwargs).arguments
        check_arguments(init, given)
        seed = given.get("seed")
        generator = torch.default_generator
        before = generator.get_state()
        generator.manual_seed(_FIRST_SEED.get() if seed is None else int(seed))
        try:
            init(*args, **kwargs)
        finally:
            generator.set_state(before)

    return made


@contextmanager
def first_seed(seed: int) -> Generator[None]:
    """Within it, models that are made without `seed` draw their first weights by this one, and so does torch."""
    torch.manual_seed(seed)
    token = _FIRST_SEED.set(seed)
    try:
        yield
    finally:
        _FIRST_SEED.reset(token)
