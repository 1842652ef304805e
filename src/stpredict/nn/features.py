"""Features of image patches from an encoder's maps, and a content-addressed cache of those of frozen encoders."""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from stpredict.nn.encoders import Encoder, folded_encoder, rgb

VERSION = 2  # of the files of a folder: with a hash; those of another version lie in other folders
MEMORY_BYTES = 2**29  # of features held by this process, all encoders together; the oldest go first
ENCODE_ROWS = 64  # patches a forward pass
AWAY = "Remove it: its features are then computed again."

_held: OrderedDict[bytes, NDArray[np.float32]] = OrderedDict()
_holding = threading.RLock()  # patches are also encoded in the thread that cuts them


def pooled(encoder: Encoder, image: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n f"]:
    """Mean and standard deviation over space of every channel of every tap, fine to coarse; f = 2 x sum of channels."""
    maps = [x.float().flatten(2) for x in encoder(image)]
    means = [x.mean(2) for x in maps]
    # a norm, not torch.std: in two passes as exact, faster, and of constant maps it has a gradient
    spreads = [_rms(x - mean[..., None]) for x, mean in zip(maps, means, strict=True)]
    return torch.cat(means + spreads, dim=1)


def _rms(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=2) / x.shape[2] ** 0.5


def averaged(encoder: Encoder, image: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n f"]:
    """Mean over space of every channel of the last tap: what a classifier of the encoder would see."""
    return encoder(image)[-1].float().mean((2, 3))


def tokens(encoder: Encoder, image: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n t f"]:
    """The last tap's map, a token for every place, row by row."""
    return encoder(image)[-1].float().flatten(2).transpose(1, 2)


FEATURES: dict[str, Callable[[Encoder, Tensor], Tensor]] = {"pooled": pooled, "averaged": averaged, "tokens": tokens}


class FeatureCache:
    """Features of uint8 patches, remembered by content: the patch, the encoder's weights and the number format.

    Parameters
    ----------
    encoder : Encoder
        Frozen, in eval mode: its weights must not change while the cache is in use. It runs in the number format of the
        surrounding autocast, with its batch norms folded into its convolutions.
    kind : str, default "pooled"
        Which of `FEATURES`.
    folder : str | Path, optional
        Where features are kept between processes, as safetensors with a hash of what they hold; None: in memory alone.

    Raises
    ------
    ValueError
        Where one in the folder was changed or damaged, or is of another encoder; it names the file.
    """

    def __init__(self, encoder: Encoder, *, kind: str = "pooled", folder: str | Path | None = None) -> None:
        self.encoder, self.features = encoder, FEATURES[kind]
        self.fingerprint = hashlib.sha256(f"{VERSION}{kind}{_fingerprint(encoder)}".encode()).hexdigest()
        self.folder = None if folder is None else Path(folder) / self.fingerprint[:16]
        self.n_encoded = 0
        self._fast: Encoder | None = None  # folded, on the encoder's device
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._read()

    def __call__(self, image: Tensor) -> Tensor:
        """(n, f) or (n, t, f) float32 features of (n, 3, h, w) uint8 patches, on the patches' device."""
        patches = image.cpu().contiguous().numpy()
        start = hashlib.sha256((self.fingerprint + self._number_format()).encode())
        keys = [_digest(start, patch) for patch in patches]
        with _holding:
            new = sorted({key: i for i, key in enumerate(keys) if key not in _held}.values())
            if new:
                self._encode(image[new], [keys[i] for i in new])
            for key in keys:
                _held.move_to_end(key)
            found = torch.from_numpy(np.stack([_held[key] for key in keys]))
            self._forget()
        return found.to(image.device)

    def _encode(self, image: Tensor, keys: list[bytes]) -> None:
        encoder = self._folded()
        with torch.inference_mode():
            found = [self.features(encoder, rgb(part.to(encoder.mean.device))) for part in image.split(ENCODE_ROWS)]
        features = torch.cat(found).cpu().numpy()
        self.n_encoded += len(features)
        _held.update(zip(keys, features, strict=True))
        if self.folder is not None:
            self._write(keys, features)

    def _folded(self) -> Encoder:
        """The encoder in fewer steps, made anew where it has moved to another device."""
        if self._fast is None or self._fast.mean.device != self.encoder.mean.device:
            self._fast = folded_encoder(self.encoder.eval())
        return self._fast

    def _number_format(self) -> str:
        """Of the encoder's forward pass, where it is not float32."""
        kind = self.encoder.mean.device.type
        return str(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else ""

    def _write(self, keys: list[bytes], features: NDArray[np.float32]) -> None:
        assert self.folder is not None
        rows = np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(len(keys), -1)
        name = hashlib.sha256(rows.tobytes()).hexdigest()[:32]
        handle, aside = tempfile.mkstemp(dir=self.folder, suffix=".part")
        os.close(handle)
        save_file({"keys": rows.copy(), "features": features}, aside, metadata={"sha256": self._hash(rows, features)})
        os.replace(aside, self.folder / f"{name}.safetensors")

    def _read(self) -> None:
        assert self.folder is not None
        for path in sorted(self.folder.glob("*.safetensors")):
            rows, features = self._file(path)
            with _holding:
                _held.update(zip([row.tobytes() for row in rows], features, strict=True))
        with _holding:
            self._forget()

    def _file(self, path: Path) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        try:
            with safe_open(path, "numpy") as file:
                said = (file.metadata() or {}).get("sha256")
                rows, features = file.get_tensor("keys"), file.get_tensor("features")
            whole = said == self._hash(rows, features)
        except (SafetensorError, OverflowError, TypeError) as error:
            raise ValueError(f"{path} is no file of features, or a damaged one ({error}). {AWAY}") from error
        if not whole:
            raise ValueError(f"{path} was changed or damaged, or holds features of another encoder. {AWAY}")
        return rows, features

    def _hash(self, rows: NDArray[np.uint8], features: NDArray[np.float32]) -> str:
        """Of keys and features, their shapes and types, and of the encoder that they belong to."""
        said = f"{self.fingerprint} {rows.shape} {features.shape} {features.dtype}"
        digest = hashlib.sha256(said.encode())
        for part in (rows, features):
            digest.update(np.ascontiguousarray(part).data)
        return digest.hexdigest()

    def _forget(self) -> None:
        size = sum(value.nbytes for value in list(_held.values())[:1]) * len(_held)
        while size > MEMORY_BYTES and len(_held) > 1:
            size -= _held.popitem(last=False)[1].nbytes


def _digest(start: Any, patch: NDArray[np.uint8]) -> bytes:
    """The hash of a patch, going on from that of what sees it."""
    digest = start.copy()
    digest.update(patch)
    return digest.digest()


def _fingerprint(encoder: Encoder) -> str:
    """A hash of the encoder's weights, taps and normalisation."""
    normalisation = (encoder.mean.flatten().tolist(), encoder.std.flatten().tolist())
    spec = (encoder.spec.name, encoder.spec.taps, sorted(encoder.spec.kwargs.items()), normalisation)
    digest = hashlib.sha256(repr(spec).encode())
    for key, value in sorted(encoder.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
