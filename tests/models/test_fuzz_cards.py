"""Folders of models that a stranger changed: whatever is in them, they load as models that work, or are refused.

Mutations of cards and weights are drawn by hypothesis from fixed seeds: eighty by default, a hundred thousand with
`pytest -o addopts=--import-mode=importlib -m fuzz -s`, which prints what became of them.
"""

from __future__ import annotations

import copy
import json
import random
import resource
import struct
import sys
import time
from collections import Counter
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

GENES = ("red", "green", "blue")
NAMES = ("Ridge", "Ridge", "STNet", "PixNet")  # the networks take longer
ROOM = 2**30  # bytes that a folder may make us take
SIDE = 512  # pixels of an image up to which a model that was changed is also run
BATCH = 5000
# fields of a card, and of its config, that no prediction depends on
UNREAD = {
    "target", "n_target_genes", "sections", "seed", "val_pcc", "val_source", "scores", "licence", "versions",
    "protocol",
    "weights_sha256", "cell_um",
}  # fmt: skip
UNREAD_CONFIG = {
    "recipe", "penalties", "pcc_weight", "stain_jitter", "text_hidden", "text_dropout", "train_genes", "context_share",
}  # fmt: skip


class Forbidden(BaseException):
    """Something that loading a folder must never do; no `except Exception` hides it."""


_watched: list[Path] = []  # the folder that is being loaded


def _audit(event: str, arguments: tuple) -> None:
    if not _watched:
        return
    if event in ("socket.connect", "socket.getaddrinfo", "pickle.find_class", "subprocess.Popen", "os.system"):
        raise Forbidden(f"{event} {arguments}")
    if event == "open" and isinstance(arguments[0], str | bytes | Path):
        path = Path(str(arguments[0])).resolve()
        # the package, its libraries, and what the system tells of itself
        ours = (_watched[0].resolve(), Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve(), Path("/proc"))
        here = Path(__file__).resolve().parents[2] / "src"
        if not any(path.is_relative_to(place) for place in (*ours, here, Path("/sys"))):
            raise Forbidden(f"open {path}")


@pytest.fixture(scope="module")
def originals(colour_section, tmp_path_factory):
    """Name -> (card, weights, predictions) of tiny trained models, and the section that they were predicted on."""
    from stpredict import models
    from stpredict._section import take
    from stpredict._training import TrainOptions, fit

    sys.addaudithook(_audit)
    recipe = models.Recipe(max_epochs=1, batch_size=8)
    made = {
        "Ridge": models.Ridge(GENES),
        "STNet": models.STNet(
            config=models.STNetConfig(
                genes=GENES, mpp=1.0, patch_px=64, encoder="test_resnet", symmetries=1, taps=(3,), recipe=recipe
            )
        ),
        "PixNet": models.PixNet(
            config=models.PixNetConfig(
                genes=GENES, mpp=1.0, encoder="test_resnet", filters=(4, 4, 4, 4), window_px=64, core_px=128,
                halo_px=32, attention_window=2, context_rank=2, recipe=recipe,
            )
        ),
    }  # fmt: skip
    section = colour_section(0, size=128)
    few = take(section, np.arange(4))
    found = {}
    for name, model in made.items():
        folder = tmp_path_factory.mktemp("originals") / name
        fit(model, [section], [], TrainOptions(device="cpu", precision="32", progress=False), sections=("colour0",))
        model.save(folder)
        content = json.loads((folder / "card.json").read_text()), (folder / "model.safetensors").read_bytes()
        found[name] = (*content, _predict(models.load(folder), few))
    return found, few


def _predict(model, section):
    from stpredict._inference import RuntimeOptions, predict

    run = RuntimeOptions(device="cpu", precision="32", progress=False, batch_size=4).resolve(model.output)
    return predict(model, section, list(model.genes), runtime=run)[0]


def _deep(n: int) -> str:
    return "[" * n + "]" * n


SPECIAL = [
    10**9, 10**7, -(10**9), 2**63, 10**400, 1e-9, 1e300, 1e-300, float("nan"), float("inf"), -1, 0, 1, 2, 3, 5, 8, 32,
    64, 0.5, True, False, None, "", "mean", "sum", "log1p", "text", "pixels", "hf-hub:owner/name", "local-dir:/etc",
    "local-dir:.", "/etc/passwd", "../card.json", "file:///etc/passwd", "resnet9999", "test_resnet", "test_vit",
    "test_efficientnet", "test_convnext", "vit_giant_patch14_224", "convnext_xxlarge", "test_resnet.r160_in1k",
    "\ud800", "\x00", "e\u0301\u202e", "x" * 10**5, [], {}, [[]], [1, 2, 3, 4], [0.5] * 3, [1e-30] * 3,
    {"checkpoint_path": "card.json"}, {"pretrained": True}, {"pretrained_cfg_overlay": {"file": "x"}},
    {"depth": 10**9}, {"cache_dir": "/tmp"}, {"img_size": 4096}, {"output_stride": 8}, {"act_layer": "gelu"},
    {"architecture": "test_vit"}, {"patch_size": 16, "embed_dim": 64, "depth": 2, "num_heads": 2}, list(range(1000)),
    ["red", "red", "blue"], ["a", "b", "c"],
]  # fmt: skip
KINDS = ("card", "card", "card", "card bytes", "weight bytes", "header", "header")
ACTIONS = {
    "card": (
        "set", "set", "scale", "scale", "gentle", "gentle", "gentle", "drop", "nest", "swap", "rename", "retype",
        "both", "twice", "deep",
    ),
    "card bytes": ("flip", "flip", "cut", "insert", "zero", "grow"),
    "weight bytes": ("flip", "flip", "cut", "insert", "zero", "grow"),
    "header": ("shape", "dtype", "offset", "drop", "rename", "set", "length", "values", "values", "values"),
}  # fmt: skip
PLANS = st.integers(0, 2**64 - 1)  # the seed of one mutation


def _plan(number: int) -> tuple[str, tuple[str, list], bool]:
    """Name of a model, what is changed and how (action, two places, value), and whether the hash is put right."""
    draw = random.Random(number)
    kind = draw.choice(KINDS)
    edits = [
        (draw.choice(ACTIONS[kind]), draw.randrange(10**6), draw.randrange(10**6), _value(draw))
        for _ in range(draw.choice((1, 1, 1, 2, 3)))
    ]
    return draw.choice(NAMES), (kind, edits), draw.random() < 0.7


def _value(draw: random.Random) -> object:
    kind = draw.randrange(8)
    if kind < 5:
        return copy.deepcopy(draw.choice(SPECIAL))
    if kind == 5:
        return draw.randrange(-(2**40), 2**40) >> draw.randrange(40)
    if kind == 6:
        return draw.uniform(-2, 2) * 10 ** draw.randrange(-20, 20)
    return "".join(chr(draw.choice((draw.randrange(32, 127), draw.randrange(2**16)))) for _ in range(draw.randrange(8)))


def _places(node, path=()):
    """Every place of a JSON value, as the keys that lead there."""
    found = [path] if path else []
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in children:
        found += _places(child, (*path, key))
    return found


def _at(node, path):
    for key in path:
        node = node[key]
    return node


def _edit(card, edit) -> tuple[object, str | None]:
    """The card after one edit, and its text where that is no card that json would write."""
    action, where, other, value = edit
    places = _places(card)
    if not places or not isinstance(card, dict):
        return value, None
    path = places[where % len(places)]
    parent, key = _at(card, path[:-1]), path[-1]
    if action == "set":
        parent[key] = value
    elif action == "scale":
        old = parent[key]
        factor = (2, 0.5, 3, -1, 1e9)[other % 5]
        parent[key] = old * factor if isinstance(old, int | float) and abs(old) < 1e290 else value
    elif action == "gentle":  # what stays in its range more often than not
        holder = card["config"] if isinstance(card.get("config"), dict) and card["config"] else card
        name = sorted(holder)[where % len(holder)]
        old = holder.get(name)
        if isinstance(old, dict) and old:
            holder, name = old, sorted(old)[other % len(old)]
            old = holder[name]
        number = isinstance(old, int | float) and not isinstance(old, bool) and abs(old) < 1e300
        holder[name] = (old + 1, old * 2, old / 2, 4, 0.25)[other % 5] if number else value
    elif action == "drop":
        del parent[key]
    elif action == "nest":
        parent[key] = [copy.deepcopy(parent[key])]
    elif action == "swap":
        second = places[other % len(places)]
        one, two = copy.deepcopy(parent[key]), copy.deepcopy(_at(card, second))
        _at(card, second[:-1])[second[-1]] = one
        if len(path) <= len(second):
            parent[key] = two
    elif action == "rename" and isinstance(parent, dict):
        parent[str(value)[:50]] = parent.pop(key)
    elif action == "retype":
        old = parent[key]
        parent[key] = str(old) if not isinstance(old, str) else [old]
    elif action == "both":  # what card and config both say, so that they agree
        name = ("genes", "mpp", "encoder")[other % 3]
        for place in (card, card.get("config")):
            if isinstance(place, dict):
                place[name] = value
    elif action == "twice":
        text = json.dumps(card)
        return card, "{" + f"{json.dumps(str(path[0]))}: 1, " + text[1:]
    elif action == "deep":
        return card, json.dumps(card)[:-1] + ', "scores": ' + _deep((100, 10**5)[other % 2]) + "}"
    return card, None


def _bytes(content: bytes, edit) -> bytes:
    action, where, other, _ = edit
    at, value = where * 7919 % max(len(content), 1), other % 256
    if action == "flip" and content:
        return content[:at] + bytes([content[at] ^ (value or 1)]) + content[at + 1 :]
    if action == "cut":
        return content[:at]
    if action == "insert":
        return content[:at] + bytes([value]) * (1 + value % 9) + content[at:]
    if action == "zero":
        return content[:at] + bytes(len(content[at : at + 64])) + content[at + 64 :]
    return content + bytes([value]) * 64


def _header(content: bytes, edit) -> bytes:
    action, where, _, value = edit
    try:
        length = struct.unpack("<Q", content[:8])[0]
        header, body = json.loads(content[8 : 8 + length]), content[8 + length :]
        name = sorted(header)[where % len(header)]
        entry = header[name]
        if action == "shape":
            entry["shape"] = value if isinstance(value, list) else [*entry["shape"][1:], *entry["shape"][:1]]
        elif action == "dtype":
            entry["dtype"] = ("F16", "F64", "BF16", "I32", "I64", "F8_E4M3", "BOOL", "nonsense")[where % 8]
        elif action == "offset":
            entry["data_offsets"] = [entry["data_offsets"][0] + 4, entry["data_offsets"][1] + 4]
        elif action == "drop":
            del header[name]
        elif action == "rename":
            header[str(value)[:50]] = header.pop(name)
        elif action == "set":
            header[name] = value
        elif action == "values":  # NaN, infinite, huge, below 0, in one tensor
            start, end = entry["data_offsets"]
            number = struct.pack("<f", (float("nan"), float("inf"), 1e38, -1e30, -1.0, 0.0, 1e-38)[where % 7])
            body = body[:start] + (number * ((end - start) // 4)) + body[start + (end - start) // 4 * 4 :]
        text = json.dumps(header).encode()
        size = len(text) + (where % 5 if action == "length" else 0)
        return struct.pack("<Q", size) + text + body
    except (TypeError, ValueError, KeyError, AttributeError, struct.error):  # an earlier edit left no header
        return content[: where % (len(content) + 1)]


def _mutated(card: dict, weights: bytes, plan) -> tuple[bytes, bytes]:
    from hashlib import sha256

    _, (kind, edits), fix = plan
    card, text = copy.deepcopy(card), None
    if kind == "card":
        for edit in edits:
            card, text = _edit(card, edit)
    elif kind in ("weight bytes", "header"):
        for edit in edits:
            weights = (_header if kind == "header" else _bytes)(weights, edit)
        if fix:
            card["weights_sha256"] = sha256(weights).hexdigest()
    content = (text if text is not None else json.dumps(card)).encode()
    if kind == "card bytes":
        for edit in edits:
            content = _bytes(content, edit)
    return content, weights


def _read(card: object) -> object:
    """What a prediction depends on in a card."""
    if not isinstance(card, dict) or not isinstance(card.get("config"), dict):
        return card
    config = {key: value for key, value in card["config"].items() if key not in UNREAD_CONFIG}
    return {key: value for key, value in card.items() if key not in UNREAD} | {"config": config}


def _is_small(model) -> bool:
    """Whether predicting is quick: what a card may ask for is also the size of the work."""
    c = model.config
    side = max(getattr(c, "core_px", 0) + 2 * getattr(c, "halo_px", 0), getattr(c, "patch_px", 0))
    patch = getattr(c, "patch_um", 0) / model.mpp
    return side <= SIDE and patch <= SIDE and getattr(c, "turns", 1) == 1 and 0.5 <= model.mpp <= 4


def _said(error: BaseException) -> str:
    parts = [str(error)]
    while (error := error.__cause__ or error.__context__) is not None:
        parts.append(f"{type(error).__name__} {error}")
    return " | ".join(parts)


def _outcome(folder: Path, section, card: dict, weights: bytes, predictions, plan) -> str:
    """What becomes of one mutation; AssertionError or `Forbidden` where it must not."""
    from stpredict import models

    content, changed = _mutated(card, weights, plan)
    (folder / "card.json").write_bytes(content)
    (folder / "model.safetensors").write_bytes(changed)
    try:
        model = models.load(folder)
    except (ValueError, OSError) as error:
        said = _said(error)
        assert str(folder) in str(error), said
        assert "allocate" not in said.lower(), said
        return f"refused by {type(error).__name__}"
    if not _is_small(model):
        return "loaded; predicting is more work than a test should do"
    try:
        values = _predict(model, section)
    except ValueError as error:
        said = _said(error)
        assert str(folder) in said or "coarser than" in said, said
        assert "allocate" not in said.lower(), said
        return "refused when predicting"
    assert np.isfinite(values).all()
    if changed == weights and _read(json.loads(content)) == _read(card):
        np.testing.assert_array_equal(values, predictions)
        return "loaded; the same predictions"
    return "loaded; other predictions"


def _fuzz(originals, folder: Path, *, n: int, first: int) -> tuple[Counter, float]:
    """Counts of what became of `n` mutations drawn from the seed `first`, and the seconds of the slowest."""
    found, section = originals
    counts, slowest = Counter(), [0.0]
    _soft, hard = resource.getrlimit(resource.RLIMIT_AS)

    @seed(first)
    @settings(
        max_examples=n, database=None, deadline=None, suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )  # fmt: skip
    @given(PLANS)
    def check(number):
        plan = _plan(number)
        in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        start = time.perf_counter()
        _watched.append(folder)
        resource.setrlimit(resource.RLIMIT_AS, (in_use + ROOM, hard))
        try:
            counts[f"{plan[0]}: {_outcome(folder, section, *found[plan[0]], plan)}"] += 1
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (_soft, hard))
            _watched.clear()
            slowest[0] = max(slowest[0], time.perf_counter() - start)

    check()
    return counts, slowest[0]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # annotations are checked in tests alone
    if not sys.platform.startswith("linux"):
        pytest.skip("the memory of a process is limited as Linux does it")
    (tmp_path / "model").mkdir()
    return tmp_path / "model"


def test_a_changed_folder_works_or_is_refused(originals, folder):
    counts, _ = _fuzz(originals, folder, n=80, first=0)
    assert sum(counts.values()) >= 80
    assert any("refused by ValueError" in outcome for outcome in counts)
    assert any("loaded" in outcome for outcome in counts)


@pytest.mark.fuzz
@pytest.mark.parametrize("batch", range(1, 21))
def test_a_hundred_thousand_changed_folders_work_or_are_refused(originals, folder, batch):
    counts, slowest = _fuzz(originals, folder, n=BATCH, first=batch)
    print(f"\nbatch {batch}, slowest {slowest:.2f} s: " + json.dumps(dict(sorted(counts.items()))))
    assert sum(counts.values()) >= BATCH * 0.9
