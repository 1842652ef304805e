"""A text generator behind any endpoint that speaks OpenAI's chat protocol: a cloud service, vLLM, llama.cpp, Ollama."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from stpredict._arguments import check_arguments

INSTRUCTION = (
    "Complete the sentence about a gene, in two or three plain sentences without a list: what it encodes, what that "
    "does, and in which cells or tissues."
)


def openai_source(
    model: str,
    *,
    base_url: str | None = None,
    api_key: str | None = None,
    instruction: str = INSTRUCTION,
    temperature: float | None = 0.0,
    timeout_s: float = 60.0,
    max_retries: int = 2,
    options: Mapping[str, Any] | None = None,
) -> Callable[[str], str]:
    """A function from a prompt to a text, for `describe_genes`, that asks a chat model (extra ``llm``).

    Parameters
    ----------
    model : str
        Name of the model at the endpoint; also the `source` of the definitions.
    base_url : str, optional
        Address of the endpoint, such as ``http://localhost:8000/v1``; None: $OPENAI_BASE_URL, else OpenAI's.
    api_key : str, optional
        None: $OPENAI_API_KEY for OpenAI's own address; none is sent to another one, so that a key never goes to a
        server that it was not made for.
    instruction : str, default INSTRUCTION
        The system message; "" sends none.
    temperature : float | None, default 0.0
        0 for the likeliest answer; None: not sent, for models that refuse it.
    timeout_s : float, default 60.0
        Seconds until a request is given up.
    max_retries : int, default 2
        How often a request that failed is tried again.
    options : Mapping[str, Any], optional
        More fields of the request, as they are: ``{"max_completion_tokens": 200, "seed": 0}``.

    Returns
    -------
    Callable[[str], str]
        The function. It raises what openai raises for an endpoint that does not answer, and ValueError for an answer
        that was cut off.

    Raises
    ------
    ImportError
        Without openai.
    ValueError
        Where a key is needed and there is none.
    """
    check_arguments(openai_source, locals())
    try:
        import openai
    except ImportError as error:
        raise ImportError(
            "openai_source needs the package openai, which is not installed: pip install 'stpredict[llm]'."
        ) from error
    address = base_url or os.environ.get("OPENAI_BASE_URL")
    key = api_key or ("not-needed" if address else os.environ.get("OPENAI_API_KEY"))
    if not key:
        raise ValueError(
            "no key for OpenAI's endpoint: pass api_key=, set OPENAI_API_KEY, or pass base_url= of another endpoint."
        )
    client = openai.OpenAI(base_url=address, api_key=key, timeout=timeout_s, max_retries=max_retries)
    more: dict[str, Any] = {} if temperature is None else {"temperature": temperature}
    return _ChatModel(name=model, instruction=instruction, request=more | dict(options or {}), client=client)


@dataclass(frozen=True)
class _ChatModel:
    """One chat model at one endpoint."""

    name: str
    instruction: str
    request: Mapping[str, Any]
    client: Any = field(repr=False)

    def __call__(self, prompt: str) -> str:
        messages = [{"role": "system", "content": self.instruction}] if self.instruction else []
        messages.append({"role": "user", "content": prompt})
        answer = self.client.chat.completions.create(model=self.name, messages=messages, **self.request)
        if not answer.choices:
            raise ValueError(f"{self.name} answered without a text: {answer!r}")
        choice = answer.choices[0]
        if choice.finish_reason == "length":
            raise ValueError(
                f"the answer of {self.name} was cut off at its limit of tokens; raise it, for example with "
                'options={"max_completion_tokens": 1000}.'
            )
        return choice.message.content or ""
