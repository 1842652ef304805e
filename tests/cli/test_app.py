from __future__ import annotations

import inspect
import json
import subprocess
import sys

import pytest

COMMANDS = ["demo", "train", "predict", "evaluate", "report", "view", "benchmark", "models", "doctor"]
HEAVY = ["anndata", "lightning", "matplotlib", "pandas", "scipy", "spatialdata", "timm", "torch"]
# what a verb takes and its command does not: objects in memory, and what the command builds from other options
# a command takes stores for objects, and the address of a scheduler for a client
# what a command takes in another form: several tables are named by repeating the option
OWN = {
    "train": {"sdatas", "model", "table_name"}, "predict": {"sdata", "model", "client"}, "evaluate": {"sdatas", "key"},
    "report": {"sdata", "key", "path"},
}  # fmt: skip


@pytest.fixture
def stp():
    import stpredict

    return stpredict


@pytest.fixture
def cli(stp):
    import stpredict.cli

    return stpredict.cli


def test_help_is_complete_and_loads_nothing_heavy():
    code = f"""
import json, sys
from stpredict.cli import app
for arguments in ([], ["train"], ["demo"], ["predict"], ["benchmark"], ["models"]):
    app.meta([*arguments, "--help"], result_action="return_value")
print(json.dumps(sorted(set({HEAVY!r}) & set(sys.modules))))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *lines, loaded = done.stdout.splitlines()
    assert json.loads(loaded) == []
    page = "\n".join(lines)
    assert [name for name in COMMANDS if f"│ {name} " not in page] == []


@pytest.mark.parametrize("verb", OWN)
def test_a_command_has_every_argument_of_its_verb_by_the_same_name(cli, stp, verb: str):
    of_verb = set(inspect.signature(getattr(stp.tl, verb)).parameters) - OWN[verb]
    of_command = set(inspect.signature(getattr(cli, verb)).parameters)
    assert of_verb - of_command == set()


@pytest.mark.parametrize("verb", OWN)
def test_defaults_of_a_command_are_those_of_its_verb(cli, stp, verb: str):
    of_command = inspect.signature(getattr(cli, verb)).parameters
    of_verb = inspect.signature(getattr(stp.tl, verb)).parameters
    shared = set(of_verb) & set(of_command) - OWN[verb]
    assert {name: of_command[name].default for name in shared} == {name: of_verb[name].default for name in shared}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_says_what_it_is(cli, run, command: str):
    wanted = inspect.signature(getattr(cli, command), eval_str=True).parameters.values()
    silent = [p.name for p in wanted if not p.annotation.__metadata__[0].help]
    assert silent == []
    status, page, _ = run(command, "--help")
    kebab = {f"--{p.name.replace('_', '-')}" for p in wanted if p.kind is p.KEYWORD_ONLY}
    assert status == 0
    assert {option for option in kebab if option not in page} == set()


def test_help_of_an_option_is_that_of_the_verb(cli, stp):
    said = cli._options.described
    assert said("tl.predict", "tissue_key").endswith("stay NaN. Default: the whole image.")
    assert said("tl.train", "resume") == "Go on from the checkpoint in `--checkpoint-dir`, to the same result."
    assert said("tl.evaluate", "shapes_key") == said("tl.evaluate", "image_key")  # they share an entry
    for verb in OWN:
        texts = {name: said(f"tl.{verb}", name) for name in inspect.signature(getattr(stp.tl, verb)).parameters}
        assert {name: text for name, text in texts.items() if not text or "None: " in text or "----" in text} == {}
    with pytest.raises(KeyError, match="has no parameter colour"):
        said("tl.predict", "colour")


def test_version_is_that_of_the_package(run, stp):
    assert run("--version")[1].strip() == stp.__version__


def test_an_error_is_one_line_on_stderr_and_status_1(run, tmp_path):
    missing = tmp_path / "no such.zarr"
    status, out, err = run("evaluate", missing)
    assert status == 1
    assert out == ""
    assert err.startswith("error: FileNotFoundError: there is no store")
    assert str(missing) in err
    assert len(err.splitlines()) == 1


def test_an_interrupt_says_what_is_kept_and_how_to_go_on(run, stp, stores, ridge, monkeypatch):
    def interrupted(*_, **__):
        error = KeyboardInterrupt()
        error.add_note("3 finished chunks are kept in .a.zarr.stpredict-run-x: the same call with resume=True goes on")
        raise error

    monkeypatch.setattr(stp.tl, "predict", interrupted)
    status, out, err = run("predict", stores[0], "--model", ridge)
    assert (status, out) == (130, "")
    kept = "3 finished chunks are kept in .a.zarr.stpredict-run-x"
    assert err == f"interrupted. {kept}: the same call with --resume goes on\n"


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("Pass another key_added, or overwrite=True to write.", "Pass another --key-added, or --overwrite to write."),
        ("Choose one with table_name=, or table_added='...'.", "Choose one with --table-name, or --table-added '...'."),
        ("Use raster_mpp=8.", "Use --raster-mpp 8."),
        ("or genes= with those in both", "or genes= with those in both"),
        ("'/data/key_added/a.zarr' has no mpp", "'/data/key_added/a.zarr' has no mpp"),
        ("t = t[t.obs['pixnet_coverage'] > 0]", "t = t[t.obs['pixnet_coverage'] > 0]"),
    ],
)
def test_errors_name_options_and_not_arguments(cli, said, shown):
    assert cli._said(ValueError(said)) == shown


def test_debug_shows_the_traceback(run, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no store"):
        run("evaluate", tmp_path / "no.zarr", "--debug")


def test_a_folder_that_is_no_store_is_said_to_be_none(run, tmp_path):
    status, _, err = run("predict", tmp_path, "--model", "ridge")
    assert (status, len(err.splitlines())) == (1, 1)
    assert "is a folder but no zarr store" in err


@pytest.mark.parametrize(
    ("arguments", "said"), [(["predikt"], "predikt"), (["predict", "a.zarr"], "--model"), (["train", "--out"], "--out")]
)
def test_wrong_usage_is_named_with_status_2(run, arguments: list[str], said: str):
    status, out, err = run(*arguments)
    assert status == 2
    assert said in err
    assert "Traceback" not in err + out


def test_warnings_are_one_line_and_developers_are_left_out(cli, capsys):
    cli._warn("12 of 20 shapes\n have nothing on the image", UserWarning, "file.py", 3)
    cli._warn("frombuffer will go", DeprecationWarning, "file.py", 3)
    assert capsys.readouterr().err == "warning: 12 of 20 shapes have nothing on the image\n"


def test_a_reader_that_has_seen_enough_is_no_error(ridge):
    code = f"""
import sys
from stpredict.cli import main
sys.argv = ["stpredict", "models", {str(ridge)!r}]
main()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
