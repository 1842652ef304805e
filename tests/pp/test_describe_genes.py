"""Texts of genes: tables, names that differ, generators that fail, and services behind a local server."""

from __future__ import annotations

import json
import sys
import threading
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

import pandas as pd
import pytest

from stpredict import pp

TABLE = pd.DataFrame({
    "gene": ["GNAS", "SCD", "ENSG00000186081", "Krt5", "KRT5B", "krt5b", "EMPTY"],
    "definition": ["Gs alpha.", "A desaturase\tof\n fat.", "A keratin.", "A mouse keratin.", "one", "two", " "],
})  # fmt: skip


def report(frame):
    return frame.attrs["report"]


def texts(frame):
    return dict(zip(frame["gene"], frame["definition"], strict=True))


def test_the_symbol_alone():
    frame = pp.describe_genes(["SCD", "GNAS"], source="symbol")
    assert frame.to_dict("list") == {"gene": ["SCD", "GNAS"], "definition": ["SCD", "GNAS"], "source": ["symbol"] * 2}
    assert report(frame)["symbol_only"] == ["SCD", "GNAS"]


def test_a_table_answers_in_the_order_asked():
    frame = pp.describe_genes(["SCD", "GNAS"], source=TABLE)
    assert list(frame.columns) == ["gene", "definition", "source"]
    assert list(texts(frame).items()) == [("SCD", "A desaturase of fat."), ("GNAS", "Gs alpha.")]
    assert report(frame)["sources"] == {"table": 2}


@pytest.mark.parametrize(("name", "separator"), [("genes.tsv", "\t"), ("genes.csv", ","), ("genes.tsv.gz", "\t")])
def test_a_file_is_a_table(tmp_path, name, separator):
    table = pd.DataFrame({"gene": ["NA", "GNAS"], "definition": ['the "quoted", one', "Gs"]})
    table.to_csv(tmp_path / name, sep=separator, index=False)
    for path in (tmp_path / name, str(tmp_path / name)):
        frame = pp.describe_genes(["NA", "GNAS"], source=path)
        assert texts(frame) == {"NA": 'the "quoted", one', "GNAS": "Gs"}
        assert set(frame["source"]) == {name}


def test_the_real_definitions(data):
    path = data / "gene_text" / "her2st_785.tsv"
    genes = pd.read_csv(path, sep="\t")["gene"].tolist()
    frame = pp.describe_genes(genes[::-1], source=path)
    assert frame["gene"].tolist() == genes[::-1]
    assert report(frame)["sources"] == {"her2st_785.tsv": 785}
    assert frame["definition"].str.len().min() > 100


def test_a_gene_without_a_definition_is_its_symbol_and_is_named():
    with pytest.warns(UserWarning, match=r"^2 of 3 genes have no definition; .* \['XIST', 'EMPTY'\]"):
        frame = pp.describe_genes(["XIST", "GNAS", "EMPTY"], source=TABLE)
    assert texts(frame) == {"XIST": "XIST", "GNAS": "Gs alpha.", "EMPTY": "EMPTY"}
    assert frame["source"].tolist() == ["symbol", "table", "symbol"]
    assert report(frame)["sources"] == {"symbol": 2, "table": 1}
    assert report(frame)["symbol_only"] == ["XIST", "EMPTY"]


def test_what_was_saved_is_a_table_again(tmp_path):
    with pytest.warns(UserWarning, match="1 of 2"):
        first = pp.describe_genes(["XIST", "GNAS"], source=TABLE)
    first.to_csv(tmp_path / "texts.tsv", sep="\t", index=False)
    with pytest.warns(UserWarning, match="1 of 2"):
        again = pp.describe_genes(["XIST", "GNAS"], source=tmp_path / "texts.tsv")
    pd.testing.assert_frame_equal(again, first, check_dtype=False)


def test_synonyms_and_other_cases_are_found_and_reported():
    genes = ["GSP", "Scd", "KRT5", "GNAS", "gsa"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frame = pp.describe_genes(
            genes, source=TABLE, synonyms={"GSP": "GNAS", "gsa": "gnas", "GNAS": "SCD", "Z": "SCD"}
        )
    assert frame["definition"].tolist() == [
        "Gs alpha.",
        "A desaturase of fat.",
        "A mouse keratin.",
        "Gs alpha.",
        "Gs alpha.",
    ]
    assert report(frame)["synonyms"] == {"GSP": "GNAS", "gsa": "GNAS"}
    assert report(frame)["case"] == {"Scd": "SCD", "KRT5": "Krt5"}
    assert report(frame)["symbol_only"] == []


def test_a_name_that_two_genes_share_but_for_case_is_neither():
    with pytest.warns(UserWarning, match=r"1 of 3 .* \['Krt5B'\]"):
        frame = pp.describe_genes(["KRT5B", "krt5b", "Krt5B"], source=TABLE)
    assert frame["definition"].tolist() == ["one", "two", "Krt5B"]


def test_ensembl_ids():
    genes = ["ENSG00000186081.12", "ENSG00000087460.1", "ENSG00000099999", "ENSMUSG00000000001"]
    names = pd.Series(["KRT5", "GNAS", None, "Gnai3"], index=genes)
    with pytest.warns(
        UserWarning, match=r"2 of 4 genes have no.*1 texts are Ensembl ids.*\['ENSG00000099999'\]\. Pass syn"
    ):
        frame = pp.describe_genes(genes, source=TABLE, synonyms=names)
    assert frame["definition"].tolist() == ["A keratin.", "Gs alpha.", "ENSG00000099999", "Gnai3"]
    assert report(frame)["ensembl"] == genes
    assert report(frame)["synonyms"] == {"ENSG00000087460.1": "GNAS", "ENSMUSG00000000001": "Gnai3"}
    with pytest.warns(UserWarning, match=r"^1 texts are Ensembl ids"):
        pp.describe_genes(["ENSG00000099999", "GNAS"], source="symbol")


@pytest.mark.parametrize(("genes", "options", "said"), [
    (["A", "B", "A"], {"source": "symbol"}, r"genes occur more than once: \['A'\] \(1 names\)"),
    ("GNAS", {"source": "symbol"}, "genes='GNAS' must be a list"),
    ([], {"source": "symbol"}, "takes a list of gene names"),
    (["A", " "], {"source": "symbol"}, r"1 genes have no name, at positions \[1\]"),
    (["A"], {"source": "NCBI"}, "source='NCBI' is not understood. It is 'symbol', 'ncbi', a table"),
    (["A"], {"source": "symbol", "cache": "x.tsv"}, "cache= is for 'ncbi' and functions"),
    (["A"], {"source": str, "template": "What is it?"}, "does not say where the gene goes: write GENE_NAME"),
    (["A"], {"source": TABLE.rename(columns={"gene": "x"})}, "no column 'gene'; it has .'x', 'definition'.. Rename"),
    (["A"], {"source": pd.concat([TABLE, TABLE.assign(definition="x")])}, "two definitions of .'GNAS', 'SCD'"),
    (["A"], {"source": "symbol", "synonyms": pd.Series("x", index=["A", "A"])}, "names genes more than once: .'A'"),
])  # fmt: skip
def test_what_is_refused(genes, options, said):
    with pytest.raises(ValueError, match=said):
        pp.describe_genes(genes, **options)


def test_a_table_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no table of definitions .*texts.tsv"):
        pp.describe_genes(["A"], source=tmp_path / "texts.tsv")


class Writer:
    """A generator that notes what it was asked, and fails at a chosen call."""

    def __init__(self, fail_at: int | None = None, error: BaseException | None = None):
        self.name, self.prompts, self.fail_at, self.error = "writer", [], fail_at, error or OSError("no answer")

    def __call__(self, prompt: str) -> str:
        self.prompts.append(prompt)
        if len(self.prompts) == self.fail_at:
            raise self.error
        return f'About\n "{prompt.split()[5]}",\tthis'


GENES = [f"G{i}" for i in range(12)]


def describe(source, **options):
    return pp.describe_genes(GENES, source=source, progress=False, **options)


def test_the_prompt_is_that_of_the_paper():
    writer = Writer()
    frame = pp.describe_genes(["GNAS", "ENSG00000186081"], source=writer, synonyms={"ENSG00000186081": "KRT5"})
    assert writer.prompts == ["The brief definition of gene GNAS is", "The brief definition of gene KRT5 is"]
    assert frame["definition"].tolist() == ['About "GNAS", this', 'About "KRT5", this']
    assert report(frame)["sources"] == {"writer": 2}
    assert report(frame)["synonyms"] == {"ENSG00000186081": "KRT5"}
    other = Writer()
    pp.describe_genes(["A"], source=other, template="Tell me in short: GENE_NAME, gene GENE_NAME")
    assert other.prompts == ["Tell me in short: A, gene A"]


def test_an_empty_answer_is_no_definition(tmp_path):
    with pytest.warns(UserWarning, match=r"1 of 2 genes have no definition.*\['A'\]"):
        frame = pp.describe_genes(["A", "B"], source=lambda p: " \n" if "A" in p else "b", cache=tmp_path / "c.tsv")
    assert frame["source"].tolist() == ["symbol", "<lambda>"]


@pytest.mark.parametrize("error", [OSError("no answer"), KeyboardInterrupt()], ids=["failure", "interruption"])
def test_what_was_paid_for_is_kept(tmp_path, error):
    cache = tmp_path / "definitions.tsv"
    whole = describe(Writer())
    first = Writer(fail_at=8, error=error)
    with pytest.raises((RuntimeError, KeyboardInterrupt)):
        describe(first, cache=cache)
    second = Writer()
    frame = describe(second, cache=cache)
    assert len(first.prompts) == 8
    assert [prompt.split()[5] for prompt in second.prompts] == GENES[7:]
    pd.testing.assert_frame_equal(frame, whole)
    third = Writer()
    pd.testing.assert_frame_equal(describe(third, cache=cache), whole)
    assert third.prompts == []
    assert texts(pp.describe_genes(GENES[:3], source=cache)) == {g: f'About "{g}", this' for g in GENES[:3]}


def test_a_failure_says_where_and_what_is_kept(tmp_path):
    cache = tmp_path / "definitions.tsv"
    said = r"writer failed at gene 'G7', number 8 of 12 \(OSError: no answer\)\. "
    with pytest.raises(RuntimeError, match=said + r"7 definitions are kept in .*definitions.tsv; the same call"):
        describe(Writer(fail_at=8), cache=cache)
    with pytest.raises(RuntimeError, match=r"'G9', number 10 of 12 .* 9 definitions are kept"):
        describe(Writer(fail_at=3), cache=cache)
    with pytest.raises(RuntimeError, match=said + r"The 7 definitions made so far are lost; with cache="):
        describe(Writer(fail_at=8))
    with pytest.raises(RuntimeError, match="failed at gene 'G0'.*TypeError: the answer is no text but int"):
        describe(lambda prompt: 3)


@pytest.mark.parametrize("n_bytes", range(1, 60, 7))
def test_a_torn_last_line_is_made_again(tmp_path, n_bytes):
    cache = tmp_path / "definitions.tsv"
    whole = describe(Writer(), cache=cache)
    content = cache.read_bytes()
    assert len(content.splitlines()[-1]) > n_bytes
    cache.write_bytes(content[:-n_bytes])
    writer = Writer()
    pd.testing.assert_frame_equal(describe(writer, cache=cache), whole)
    assert [prompt.split()[5] for prompt in writer.prompts] == GENES[-1:]
    assert cache.read_bytes() == content


@pytest.mark.parametrize("content", [b"", b"gene\tdef", b"gene\tdefinition\tsource\tname\tprompt"])
def test_a_cache_that_was_torn_at_its_first_line(tmp_path, content):
    cache = tmp_path / "definitions.tsv"
    cache.write_bytes(content)
    whole = describe(Writer(), cache=cache)
    assert cache.read_bytes().startswith(b"gene\tdefinition\tsource\tname\tprompt\nG0\t")
    pd.testing.assert_frame_equal(describe(Writer(fail_at=1), cache=cache), whole)


def test_a_cache_grows_and_is_of_one_prompt(tmp_path):
    cache = tmp_path / "definitions.tsv"
    pp.describe_genes(["A", "B"], source=Writer(), cache=cache)
    writer = Writer()
    frame = pp.describe_genes(["C", "B"], source=writer, cache=cache)
    assert [prompt.split()[5] for prompt in writer.prompts] == ["C"]
    assert frame["gene"].tolist() == ["C", "B"]
    before = cache.read_bytes()
    with pytest.raises(
        ValueError, match=r"1 genes that were made with another prompt: 'The brief.* A is', now 'Gene A'"
    ):
        pp.describe_genes(["D", "A"], source=Writer(), cache=cache, template="Gene GENE_NAME")
    assert cache.read_bytes() == before


@pytest.mark.parametrize(("content", "said"), [
    (b"gene\tdefinition\nGNAS\tGs\n", "no cache of describe_genes: it begins with b'gene.*as `source`"),
    (b"some notes", "no cache of describe_genes"),
    (b"gene\tdefinition\tsource\tname\tprompt\nA\tx\tw\tA\tp\nB\tx\n", "is damaged: line 3"),
])  # fmt: skip
def test_a_file_that_is_no_cache_is_not_touched(tmp_path, content, said):
    cache = tmp_path / "definitions.tsv"
    cache.write_bytes(content)
    with pytest.raises(ValueError, match=said):
        describe(Writer(), cache=cache)
    assert cache.read_bytes() == content
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        describe(Writer(), cache=tmp_path / "nowhere" / "definitions.tsv")


@pytest.fixture
def server():
    """A local server: `answer(path, request)` makes the JSON, or a status; `seen` keeps what was asked."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            is_json = self.headers["Content-Type"].startswith("application/json")
            asked = json.loads(body) if is_json else {key: value[0] for key, value in parse_qs(body).items()}
            self.server.seen.append((self.path, asked, self.headers.get("Authorization")))
            made = self.server.answer(asked)
            content = json.dumps({"error": {"message": "busy"}} if isinstance(made, int) else made).encode()
            self.send_response(made if isinstance(made, int) else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(content)
            self.close_connection = True

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.seen, http.url = [], f"http://127.0.0.1:{http.server_address[1]}"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield http
        http.shutdown()
        thread.join()


def completion(text, finish_reason="stop"):
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": finish_reason}
    return {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}


@pytest.fixture
def chat(server, monkeypatch):
    """A function that makes a source of the local server."""
    pytest.importorskip("openai", reason="the extra llm is not installed")
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    made = []

    def make(**options):
        made.append(pp.openai_source("small-model", base_url=f"{server.url}/v1", max_retries=0, **options))
        return made[-1]

    yield make
    for source in made:
        source.client.close()


def test_a_chat_endpoint_writes_definitions(server, chat, tmp_path):
    server.answer = lambda asked: completion(f"Asked: {asked['messages'][-1]['content']}")
    source = chat(options={"max_tokens": 50})
    frame = pp.describe_genes(["GNAS", "SCD"], source=source, cache=tmp_path / "c.tsv", progress=False)
    assert frame["definition"].tolist() == [f"Asked: The brief definition of gene {g} is" for g in ("GNAS", "SCD")]
    assert set(frame["source"]) == {"small-model"}
    path, asked, key = server.seen[0]
    assert path == "/v1/chat/completions"
    assert {k: asked[k] for k in ("model", "temperature", "max_tokens")} == {
        "model": "small-model", "temperature": 0.0, "max_tokens": 50,
    }  # fmt: skip
    assert [message["role"] for message in asked["messages"]] == ["system", "user"]
    assert "secret" not in key


def test_a_chat_request_can_be_bare(server, chat):
    server.answer = lambda asked: completion("text")
    assert chat(instruction="", temperature=None, api_key="mine")("GNAS") == "text"
    _, asked, key = server.seen[0]
    assert asked == {"model": "small-model", "messages": [{"role": "user", "content": "GNAS"}]}
    assert key == "Bearer mine"


def test_an_endpoint_that_fails_keeps_what_came(server, chat, tmp_path):
    server.answer = lambda asked: 503 if len(server.seen) == 3 else completion("text")
    with pytest.raises(RuntimeError, match=r"small-model failed at gene 'G2', number 3 of 12 .*2 definitions are kept"):
        describe(chat(), cache=tmp_path / "c.tsv")
    assert describe(chat(), cache=tmp_path / "c.tsv")["definition"].tolist() == ["text"] * 12
    assert len(server.seen) == 13


@pytest.mark.parametrize(("answer", "said"), [
    (completion("cut o", "length"), "cut off at its limit of tokens.*options="),
    (completion("x") | {"choices": []}, "answered without a text"),
])  # fmt: skip
def test_an_answer_that_is_not_whole_is_refused(server, chat, answer, said):
    server.answer = lambda asked: answer
    with pytest.raises(RuntimeError, match=f"failed at gene 'G0'.*{said}"):
        describe(chat())


def test_a_refusal_is_no_definition(server, chat):
    server.answer = lambda asked: completion(None)
    with pytest.warns(UserWarning, match="12 of 12 genes have no definition"):
        assert set(describe(chat())["source"]) == {"symbol"}


def test_openai_itself_needs_a_key(monkeypatch):
    pytest.importorskip("openai", reason="the extra llm is not installed")
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="no key for OpenAI's endpoint: pass api_key="):
        pp.openai_source("gpt")


@pytest.mark.parametrize(("package", "extra", "call"), [
    ("openai", "llm", lambda: pp.openai_source("gpt", api_key="x")),
    ("mygene", "text", lambda: pp.describe_genes(["GNAS"], source="ncbi")),
])  # fmt: skip
def test_a_missing_extra_is_named(monkeypatch, package, extra, call):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"pip install 'stpredict\[{extra}\]'"):
        call()


GENES_OF_NCBI = {
    "GNAS": [{"symbol": "GNAS", "summary": "Gs\nalpha."}],
    "GSP": [{"symbol": "GNAS", "summary": "Gs alpha."}],
    "SCD": [{"symbol": "FADS5", "summary": "wrong"}, {"symbol": "SCD"}, {"symbol": "SCD", "summary": "Desaturase."}],
    "Krt5": [{"symbol": "KRT5", "summary": "Keratin."}],
    "P1": [{"symbol": "A1", "summary": "one"}, {"symbol": "A2", "summary": "two"}],
    "MIR1": [{"symbol": "MIR1"}],
    "ENSG00000186081": [{"symbol": "KRT5", "summary": "Keratin."}],
}


@pytest.fixture
def ncbi(server, monkeypatch):
    """The real client of MyGene.info, at a local server that knows GENES_OF_NCBI."""
    mygene = pytest.importorskip("mygene", reason="the extra text is not installed")
    client = mygene.MyGeneInfo()
    client.url, client.delay = server.url, 0

    def answer(asked):
        names = [name.strip('"') for name in asked["q"].split(",")]
        return [
            {"query": name} | hit for name in names for hit in GENES_OF_NCBI.get(name, [{"notfound": True}])
        ]  # fmt: skip

    server.answer = answer
    monkeypatch.setattr(mygene, "MyGeneInfo", lambda: client)
    yield server
    client.http_client.close()


def test_summaries_of_ncbi(ncbi, tmp_path):
    genes = ["GNAS", "GSP", "SCD", "Krt5", "P1", "MIR1", "ENSG00000186081.3", "NOPE"]
    said = (
        r"3 of 8 genes have no definition.*\['P1', 'MIR1', 'NOPE'\]\. 1 of them are aliases of several genes: \['P1'\]"
    )
    options = {"source": "ncbi", "cache": tmp_path / "ncbi.tsv", "progress": False}
    with pytest.warns(UserWarning, match=said):
        frame = pp.describe_genes(genes, **options)
    wanted = ["Gs alpha.", "Gs alpha.", "Desaturase.", "Keratin.", "P1", "MIR1", "Keratin.", "NOPE"]
    assert frame["definition"].tolist() == wanted
    assert report(frame)["sources"] == {"ncbi": 5, "symbol": 3}
    assert report(frame)["synonyms"] == {"GSP": "GNAS", "ENSG00000186081.3": "KRT5"}
    assert report(frame)["case"] == {"Krt5": "KRT5"}
    assert report(frame)["ambiguous"] == {"P1": ["A1", "A2"]}
    assert [(asked["scopes"], asked["species"]) for _, asked, _ in ncbi.seen] == [
        ("symbol,alias", "human"), ("ensembl.gene", "human"),
    ]  # fmt: skip
    with pytest.warns(UserWarning, match=said):
        again = pp.describe_genes(genes, **options)
    pd.testing.assert_frame_equal(again, frame)
    assert report(again) == report(frame)
    assert ncbi.seen[-1][1]["q"].replace('"', "") == "MIR1,NOPE,P1"  # only what is not known yet
    with pytest.raises(ValueError, match="made with another prompt: 'ncbi human', now 'ncbi mouse'"):
        pp.describe_genes(genes, species="mouse", **options)


def test_a_service_that_fails_keeps_what_came(ncbi, tmp_path, monkeypatch):
    from stpredict.pp import _text_sources

    monkeypatch.setattr(_text_sources, "_BATCH", 2)
    answer = ncbi.answer
    ncbi.answer = lambda asked: 500 if len(ncbi.seen) == 2 else answer(asked)
    options = {"source": "ncbi", "cache": tmp_path / "ncbi.tsv", "progress": False}
    with pytest.raises(ConnectionError, match=r"did not answer \(HTTPStatusError.*2 definitions are kept in .*a table"):
        pp.describe_genes(["GNAS", "SCD", "Krt5"], **options)
    frame = pp.describe_genes(["GNAS", "SCD", "Krt5"], **options)
    assert set(frame["source"]) == {"ncbi"}
    assert [asked["q"].replace('"', "") for _, asked, _ in ncbi.seen] == ["GNAS,SCD", "Krt5", "Krt5"]
