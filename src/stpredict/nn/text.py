"""Text encoders: language models of the transformers library as functions from texts to vectors."""

from __future__ import annotations

import hashlib
import inspect
import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from huggingface_hub import try_to_load_from_cache
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from stpredict.nn.device import resolve_device

if TYPE_CHECKING:
    from numpy.typing import NDArray

logger = logging.getLogger("stpredict")

_COMMIT = re.compile(r"[0-9a-f]{40}")
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
_FOLDER = "A folder needs config.json, model.safetensors and the tokenizer's files, as `save_pretrained` writes them."


class TextEncoder:
    """A language model that turns texts into vectors: the states of its last layer, pooled, at length 1.

    Weights are read from safetensors alone, code of a hub is never run, and weights that a checkpoint lacks are an
    error (a pooler excepted, which is not used). Computes in float32 without dropout.

    Attributes: `name` (hub id, or the folder's own name), `revision` (the commit; for a folder "sha256:" and 16 digits
    of the hash of its weights), `pooling`, `max_tokens` (the limit in force), `device`.

    Parameters
    ----------
    name_or_path : str | Path
        A hub id, such as ``emilyalsentzer/Bio_ClinicalBERT`` (768 values) or ``medicalai/ClinicalBERT`` (768 values, a
        DistilBERT), or a local folder as ``save_pretrained`` writes it. Of encoder-decoder models the encoder is used.
    revision : str, optional
        Commit, branch, tag or ``refs/pr/1`` of a hub id; None: its main branch. The commit that this meant is kept.
    pooling : str, default "mean"
        "mean": over the tokens of a text, padding left out. "first": the first token, the summary of BERT and its kind;
        of a causal model it has seen nothing of the text.
    max_tokens : int, optional
        Longer texts are cut there, special tokens included; None: as many as the encoder can take.
    device : str, default "auto"
        "auto", "cpu", "cuda", ...
    normalise : bool, default True
        Scale each vector to length 1.

    Raises
    ------
    ImportError
        Without transformers.
    FileNotFoundError
        For a folder that is not there or lacks files.
    ConnectionError
        For a hub id that is not in the local cache while HF_HUB_OFFLINE is set.
    OSError
        Where the hub does not have it.
    ValueError
        For damaged files, unknown pooling, and a limit that the encoder cannot take.
    """

    def __init__(
        self,
        name_or_path: str | Path,
        *,
        revision: str | None = None,
        pooling: str = "mean",
        max_tokens: int | None = None,
        device: str = "auto",
        normalise: bool = True,
    ) -> None:
        if pooling not in ("mean", "first"):
            raise ValueError(f'pooling={pooling!r} is unknown: use "mean" or "first".')
        self.name, known = encoder_identity(name_or_path, revision)
        self.device = resolve_device(device)
        self.pooling: str = pooling
        self.normalise = normalise
        self._tokenizer, model = _load(name_or_path, revision)
        self.revision = getattr(model.config, "_commit_hash", None) or known
        if getattr(model.config, "is_encoder_decoder", False):
            model = model.get_encoder()
        self._model = model.float().eval().requires_grad_(False).to(self.device)
        self._accepts = set(inspect.signature(self._model.forward).parameters)
        self.max_tokens = self._limit(max_tokens)

    def encode(
        self, texts: Sequence[str], *, batch_size: int = 32, progress: bool = False
    ) -> tuple[NDArray[np.float32], int]:
        """Vectors of texts.

        A vector depends on its own text alone, not on the batch: padding is masked.

        Parameters
        ----------
        texts : Sequence[str]
            Texts, none of them empty.
        batch_size : int, default 32
            Texts at once.
        progress : bool, default False
            Show progress bars.

        Returns
        -------
        tuple[ndarray, int]
            (n, w) vectors, and how many texts were longer than `max_tokens` and cut.

        Raises
        ------
        ValueError
            For no texts, and for texts that are empty.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        empty = [i for i, text in enumerate(texts) if not text.strip()]
        if not texts or empty:
            raise ValueError(
                f"{len(empty)} of {len(texts)} texts are empty (positions {empty[:5]}); there is nothing to encode."
            )
        lengths = np.array([len(ids) for ids in self._tokenizer(texts, verbose=False)["input_ids"]])
        order = np.argsort(-lengths, kind="stable")  # texts of one length side by side: little padding
        starts = range(0, len(texts), batch_size)
        rows = [order[start : start + batch_size] for start in tqdm(starts, desc="texts", disable=not progress)]
        vectors = np.concatenate([self._encode_batch([texts[i] for i in batch]) for batch in rows])
        return vectors[np.argsort(order)], int((lengths > self.max_tokens).sum())

    def _encode_batch(self, texts: list[str]) -> NDArray[np.float32]:
        tokens = self._tokenizer(
            texts, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt",
            return_attention_mask=True,
        )  # fmt: skip
        tokens = {key: value.to(self.device) for key, value in tokens.items() if key in self._accepts}
        with torch.inference_mode():
            states = self._model(**tokens).last_hidden_state
            vectors = pool_tokens(states, tokens["attention_mask"], pooling=self.pooling)
            vectors = nn.functional.normalize(vectors, dim=1) if self.normalise else vectors
        return vectors.cpu().numpy()

    def _limit(self, asked: int | None) -> int:
        """The limit of tokens in force: the one asked, or the encoder's own."""
        own = min(self._tokenizer.model_max_length, _n_positions(self._model))
        least = self._tokenizer.num_special_tokens_to_add() + 1
        if asked is not None and not least <= asked <= own:
            raise ValueError(
                f"max_tokens={asked}: {self.name!r} takes {least} to {own} tokens, special ones included. None takes "
                "all it can."
            )
        return own if asked is None else asked


def pool_tokens(
    states: Float[Tensor, "b s w"], mask: Int[Tensor, "b s"], *, pooling: str = "mean"
) -> Float[Tensor, "b w"]:
    """One vector a text from the states of its tokens: their mean where `mask` is 1, or the first one.

    Texts are padded on the right, so that the first token is never padding.
    """
    if pooling == "first":
        return states[:, 0]
    weight = mask.unsqueeze(-1).to(states.dtype)
    return (states * weight).sum(dim=1) / weight.sum(dim=1)


def encoder_identity(name_or_path: str | Path, revision: str | None = None) -> tuple[str, str | None]:
    """Name and revision by which vectors of an encoder are known, found without loading it.

    Of a local folder: its own name, and a hash of its weights. Of a hub id: the id, and the commit where `revision` is
    one or names one that is in the local cache; else None.

    Raises
    ------
    FileNotFoundError
        For a folder that is not there or lacks files.
    ValueError
        For a folder with a revision.
    """
    folder = _folder(name_or_path)
    if folder is None:
        name, asked = str(name_or_path), revision or "main"
        if _COMMIT.fullmatch(asked):
            return name, asked
        cached = try_to_load_from_cache(name, "config.json", revision=asked)
        return name, Path(cached).parent.name if isinstance(cached, str) else None
    if revision is not None:
        raise ValueError(
            f"revision={revision!r} belongs to a hub id; {folder} is a local folder, whose weights are hashed instead."
        )
    whole = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as opened:
            whole.update(hashlib.file_digest(opened, "sha256").digest())
    return folder.resolve().name, f"sha256:{whole.hexdigest()[:16]}"


def _folder(name_or_path: str | Path) -> Path | None:
    """The local folder that is meant, with the files it must have; None for a hub id."""
    text = str(name_or_path)
    folder = Path(text).expanduser()
    if not folder.is_dir():
        if isinstance(name_or_path, Path) or text.startswith((".", "~", os.sep)) or text.count("/") > 1:
            raise FileNotFoundError(
                f"no folder {text}. Pass a folder that holds a text encoder, or a hub id. {_FOLDER}"
            )
        return None
    missing = [name for name in ("config.json", "*.safetensors") if not any(folder.glob(name))]
    if not any(any(folder.glob(name)) for name in _TOKENIZER_FILES):
        missing.append("a tokenizer (tokenizer.json)")
    if missing:
        raise FileNotFoundError(
            f"the folder {text} is no text encoder: it lacks {', '.join(missing)}; it holds "
            f"{sorted(file.name for file in folder.iterdir())[:10]}. {_FOLDER} Weights in another format are not read: "
            "load them with transformers where they can be trusted, and save them again."
        )
    return folder


def _load(name_or_path: str | Path, revision: str | None) -> tuple[Any, Any]:
    """Tokenizer and network, as the files say."""
    transformers = _transformers()
    folder, offline = _folder(name_or_path), os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0")
    source = str(folder or name_or_path)
    common: dict[str, Any] = {"local_files_only": folder is not None or offline, "trust_remote_code": False}
    if folder is None:
        common["revision"] = revision or "main"
    try:
        with _quiet(transformers):
            tokenizer = transformers.AutoTokenizer.from_pretrained(source, **common)
            model, info = transformers.AutoModel.from_pretrained(
                source, use_safetensors=True, output_loading_info=True, **common
            )
    except Exception as error:
        raise _not_loaded(error, source, is_local=folder is not None, offline=offline) from error
    missing = sorted(key for key in info["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise ValueError(
            f"{source}: the weights lack {len(missing)} tensors of a {type(model).__name__}, such as {missing[:3]}; "
            "they would be random. Are config.json and the weights of one model?"
        )
    _prepare_tokenizer(tokenizer, source, n_words=getattr(model.config, "vocab_size", 0))
    return tokenizer, model


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ImportError(
            "text encoders need the package transformers, which is not installed: pip install 'stpredict[text]'. "
            "Embeddings that were saved need no text encoder: stp.tl.GeneEmbeddings.load(path)."
        ) from error
    return transformers


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without the bar that transformers shows while it reads weights."""
    log = transformers.utils.logging
    was_shown = log.is_progress_bar_enabled()
    log.disable_progress_bar()
    try:
        yield
    finally:
        if was_shown:
            log.enable_progress_bar()


def _not_loaded(error: Exception, source: str, *, is_local: bool, offline: bool) -> Exception:
    """What to tell of an encoder that could not be loaded."""
    said = f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
    if is_local:
        return ValueError(f"the text encoder in {source} cannot be read {said}. {_FOLDER}")
    here = f"{source!r} is no folder here, so it was looked up as a hub id"
    local = (
        "Where the hub is out of reach, copy the encoder's files into a folder on a machine that reaches it and pass "
        f"the folder's path as `encoder`. {_FOLDER}"
    )
    if offline:
        return ConnectionError(
            f"{here}; HF_HUB_OFFLINE is set, and the hub's files of it are not all in the local cache {said}. {local}"
        )
    return OSError(
        f"{here}, which failed {said}. Check the id and the revision; a model that has no safetensors on its main "
        f"branch often has them under a revision such as 'refs/pr/1' (see its pull requests on the hub). {local}"
    )


def _prepare_tokenizer(tokenizer: Any, source: str, *, n_words: int) -> None:
    """Padding on the right with a token that exists; ValueError for the empty tokenizer that stands for lost files."""
    if 2 * len(tokenizer) < n_words:
        raise ValueError(
            f"{source}: the tokenizer knows {len(tokenizer)} tokens and the network {n_words}: the tokenizer's files "
            f"are missing or of another model. {_FOLDER}"
        )
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    if tokenizer.pad_token is None:  # causal models have none; what stands there is masked
        if tokenizer.eos_token is None:
            raise ValueError(f"{source}: the tokenizer has no padding token, so that texts cannot go in batches.")
        tokenizer.pad_token = tokenizer.eos_token


def _n_positions(model: nn.Module) -> int:
    """How many tokens the network has positions for; the table of RoBERTa and its kind begins with unused rows."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return int(getattr(model.config, "max_position_embeddings", None) or 10**6)
