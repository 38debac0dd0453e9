"""What `ramify up` makes of its options."""

import pytest

from ramify.local.system import default_verifier

ONNX = "onnx:/models/generator"


@pytest.mark.parametrize(
    ("engines", "name"),
    [(["simulated"], "simulated-prm"), (["simulated:h100.toml", "simulated?slots=3"], "simulated-prm"), ([ONNX], "tiny24-prm")],
)
def test_engines_have_the_reward_model_that_goes_with_them(engines: list[str], name: str) -> None:
    assert default_verifier(engines).partition("=")[0] == name
    assert default_verifier([*engines, ONNX]).partition("=")[0] == "tiny24-prm"
