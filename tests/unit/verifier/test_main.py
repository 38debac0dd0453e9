import socket
from pathlib import Path

import pytest

from ramify.verifier.__main__ import main


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


def test_a_folder_that_lacks_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert main(["--listen", "127.0.0.1:0", "--model", f"prm={tmp_path}"]) == 2
    assert f"model 'prm': the folder '{tmp_path}' lacks model.onnx, tokenizer.json" in capsys.readouterr().err


def test_a_folder_with_broken_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("config.json", "model.onnx", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    assert main(["--listen", "127.0.0.1:0", "--model", f"prm={tmp_path}"]) == 2
    assert f"model 'prm': cannot load the folder '{tmp_path}'" in capsys.readouterr().err
