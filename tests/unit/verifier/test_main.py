import json
import shutil
import socket
from pathlib import Path

import pytest

from ramify.verifier.__main__ import main
from ramify.verifier.errors import StartupError
from ramify.verifier.loading import load_model


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to serve: give --model NAME=FOLDER or --rule NAME"),
        (["--rule", "chess"], "no rule 'chess'; there is countdown"),
        (["--rule", "countdown", "--rule", "countdown"], "two models have one name: countdown, countdown"),
        (["--model", "prm"], "--model 'prm' is not NAME=FOLDER"),
        (
            ["--model", "sim=simulated?speed=3"],
            "model 'sim': simulated has no option speed; there is base_ms, token_us, time_scale",
        ),
        (["--model", "sim=simulated?base_ms=fast"], "model 'sim': base_ms: Input should be a valid number"),
        (["--model", "sim=simulated?base_ms=-1"], "model 'sim': Value error, a time is negative"),
        (["--rule", "countdown", "--listen", "nowhere"], "cannot listen on 'nowhere': it is not HOST:PORT"),
        (["--rule", "countdown", "--listen", "127.0.0.1:99999"], "cannot listen on '127.0.0.1:99999': it is not HOST:PORT"),
    ],
)
def test_what_cannot_start_says_why(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--listen", "127.0.0.1:0", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_taken_port(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert main(["--rule", "countdown", "--listen", address]) == 2
    assert f"cannot listen on '{address}': the address is taken" in capsys.readouterr().err


PRM = Path(__file__).parents[3] / "infra" / "models" / "tiny24" / "prm"


def refused(spec: str) -> str:
    """Why a model can't be loaded."""
    with pytest.raises(StartupError) as caught:
        load_model("prm", spec)
    return str(caught.value)


def test_a_folder_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--listen", "127.0.0.1:0", "--model", f"prm={tmp_path}/nowhere"]) == 2
    assert f"model 'prm': there is no folder '{tmp_path}/nowhere'" in capsys.readouterr().err


def test_a_folder_that_lacks_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert refused(str(tmp_path)) == f"model 'prm': the folder '{tmp_path}' lacks tokenizer.json"


@pytest.mark.parametrize("broken", ["config.json", "model.onnx", "tokenizer.json", "tokenizer_config.json", "ramify.json"])
def test_a_folder_with_a_broken_file(tmp_path: Path, broken: str) -> None:
    shutil.copytree(PRM, tmp_path, dirs_exist_ok=True)
    (tmp_path / broken).write_text("[]")
    assert broken in refused(str(tmp_path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("backend=onx", "no backend 'onx'; there is onnx, transformers, vllm"),
        ("convention=line", "no convention 'line'; there is qwen-math-prm, math-shepherd, "),
        ("thread=2", "the backend onnx has no option thread; did you mean threads?"),
        ("system=x", "the backend onnx has no option system; there is backend, convention, threads, "),
        ("threads=many", "the backend onnx: threads is 'many': input should be a valid integer"),
        ("convention=judge&template=Say!", "the judge's template must have {problem} and then {solution} in it, each once"),
        ("convention=judge&template=@nowhere.txt", "the file 'nowhere.txt' can't be read: "),
        (
            "convention=judge",
            "the tokenizer is of another model: judge needs 'P' at character 1, which the model's vocabulary lacks",
        ),
        (
            "convention=qwen-math-prm",
            "the tokenizer has no '<extra_0>': this is no Qwen2.5-Math-PRM, or the tokenizer of another",
        ),
        (
            "convention=math-shepherd",
            "the tokenizer is of another model: there is 'к' at character 1, which the model's vocabulary",
        ),
        ("convention=rlhflow", "the model has no chat template"),
        ("convention=value-head&separator=", "the separator is empty: it is where a score is read"),
    ],
)
def test_options_that_do_not_fit(options: str, message: str) -> None:
    assert message in refused(f"{PRM}?{options}")


def test_a_model_that_does_not_say_how_it_is_asked(tmp_path: Path) -> None:
    shutil.copytree(PRM, tmp_path, dirs_exist_ok=True)
    (tmp_path / "ramify.json").unlink()
    assert "(LlamaForCausalLM) does not say how it wants to be asked: add convention=NAME, one of qwen-math" in refused(
        str(tmp_path)
    )
    assert load_model("prm", f"{tmp_path}?convention=newline").convention == "newline"


@pytest.mark.parametrize("told", [{"convention": 3}, {"convention": "newline", "options": ["x"]}])
def test_a_folder_that_says_it_wrongly(told: object, tmp_path: Path) -> None:
    shutil.copytree(PRM, tmp_path, dirs_exist_ok=True)
    (tmp_path / "ramify.json").write_text(json.dumps(told))
    assert refused(str(tmp_path)).endswith("ramify.json: convention must be a name, and options an object")


def test_a_folder_may_name_options_and_the_command_line_others(tmp_path: Path) -> None:
    shutil.copytree(PRM, tmp_path, dirs_exist_ok=True)
    (tmp_path / "ramify.json").write_text('{"convention": "judge", "options": {"template": "{problem}:{solution} ", "yes": "+"}}')
    (tmp_path / "word").write_text("-")
    spec = f"{tmp_path}?no=@{tmp_path}/word"
    judge = load_model("judge", spec)
    assert judge.convention == "judge"
    assert load_model("judge", f"{spec}&yes=*").revision != judge.revision
    assert "'/+' is no token of its own" in refused(f"{spec}&yes=/%2B")
    assert load_model("prm", f"{spec.partition('?')[0]}?convention=newline").convention == "newline"


def test_a_tokenizer_of_another_model(tmp_path: Path) -> None:
    shutil.copytree(PRM, tmp_path, dirs_exist_ok=True)
    config = json.loads((PRM / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "vocab_size": 20}))
    assert "the tokenizer is of another model: it has 24 tokens, and config.json says 20" in refused(str(tmp_path))


def test_the_revision_is_of_the_content_and_of_what_is_asked(tmp_path: Path) -> None:
    shutil.copytree(PRM, tmp_path, dirs_exist_ok=True)
    first = load_model("prm", str(tmp_path)).revision
    assert first == load_model("another name", f"{PRM}?threads=2").revision
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    assert load_model("prm", str(tmp_path)).revision not in ("", first)
