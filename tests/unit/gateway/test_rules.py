"""Problems checked at submission by the rules that are installed here."""

from pathlib import Path

import pytest

from ramify.gateway.admission import check_problems
from ramify.gateway.errors import InvalidRequest
from ramify.store.jobs import ModelRow
from ramify.v1 import job_pb2
from ramify.verifier.rules import load_rule

LOUD = """
from ramify.verifier.errors import ProblemError
from ramify.verifier.rules import Rule

class Loud(Rule):
    name, revision = "loud", "1"

    def normalise_problem(self, text):
        if not text.isascii():
            raise ProblemError(f"{text!r} is not in English")
        return text.upper()

    def score(self, problem, steps, reference):
        return [1.0] * len(steps)
"""


def checked(checker: str, *problems: job_pb2.Problem) -> list[str]:
    """The prompts of the problems of a job with that checker."""
    models = [ModelRow("generator", "g", "1", "\n", ""), ModelRow("checker", checker, "1", "", "")]
    found = check_problems(problems, 0, job_pb2.JobSpec(generator="g", checker=checker), models)
    return [problem.prompt for problem in found]


def test_a_rule_that_compares_wants_a_reference() -> None:
    whole = job_pb2.Problem(text=" 2 + 2? ", reference="4")
    assert checked("math", whole) == [" 2 + 2? "]
    with pytest.raises(InvalidRequest, match="problem 1: the problem has no reference answer"):
        checked("math", whole, job_pb2.Problem(text="2 + 3?"))


def test_a_rule_of_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "loud_rule.py").write_text(LOUD)
    info = tmp_path / "loud_rule-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: loud-rule\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[ramify.rules]\nloud = loud_rule:Loud\n")
    load_rule.cache_clear()
    assert checked("loud", job_pb2.Problem(text="ščř")) == ["ščř"], "it is not installed here"
    monkeypatch.syspath_prepend(tmp_path)
    assert checked("loud", job_pb2.Problem(text="abc")) == ["ABC"]
    with pytest.raises(InvalidRequest, match="problem 0: 'ščř' is not in English"):
        checked("loud", job_pb2.Problem(text="ščř"))
    load_rule.cache_clear()
