import grpc
import pytest

from ramify.client import InvalidRequest, SpecFields, job_spec
from ramify.client.errors import ERROR_OF_STATUS, ClientError
from ramify.client.spec import SEARCH_KNOBS, word
from ramify.v1 import job_pb2

VERIFIER = job_pb2.Verifier


def test_every_status_code_has_an_error() -> None:
    assert set(ERROR_OF_STATUS) == set(grpc.StatusCode)
    assert all(issubclass(kind, ClientError) and kind is not ClientError for kind in ERROR_OF_STATUS.values())


def test_spec_fields_are_those_of_the_proto() -> None:
    own = {field.name for field in job_pb2.JobSpec.DESCRIPTOR.fields} - {"search", "budget", "prompt", "routing"}
    prompt = {"system", "prompt_template", "chat", "step_prompt", "thoughts_end"}
    routing = set(job_pb2.Routing.DESCRIPTOR.fields_by_name)
    assert len(prompt) == len(job_pb2.Prompt.DESCRIPTOR.fields)
    assert set(SpecFields.__annotations__) == own | prompt | set(SEARCH_KNOBS) | routing | set(
        job_pb2.Budget.DESCRIPTOR.fields_by_name
    )


def test_several_generators_are_names_or_weights() -> None:
    one, other = job_spec(generators=["a", "b"]), job_spec(generators={"a": 3, "b": "0.5"})
    assert [(each.model, each.HasField("weight")) for each in one.generators] == [("a", False), ("b", False)]
    assert [(each.model, each.weight) for each in other.generators] == [("a", 3.0), ("b", 0.5)]
    for bad in ("a", 3, [1]):
        with pytest.raises(InvalidRequest, match="generators is names of models, or weights by name, not"):
            job_spec(generators=bad)
    with pytest.raises(InvalidRequest, match="the weight of a is a number, not 'much'"):
        job_spec(generators={"a": "much"})


def test_several_verifiers_are_names_weights_or_all_that_is_said_of_each() -> None:
    names, weights = job_spec(verifiers=["a", "b"]), job_spec(verifiers={"a": 3, "b": "0.5"})
    assert [*names.verifiers] == [VERIFIER(model="a"), VERIFIER(model="b")]
    assert [*weights.verifiers] == [VERIFIER(model="a", weight=3), VERIFIER(model="b", weight=0.5)]
    said = job_spec(verifiers=["a", {"model": "b", "weight": "2", "temperature": 1.5, "when": "end"}]).verifiers
    assert [*said] == [VERIFIER(model="a"), VERIFIER(model="b", weight=2, temperature=1.5, when=job_pb2.WHEN_RULE_END)]
    for bad, message in (
        ("a", "verifiers is names of models, weights by name, or mappings of what is said of each, not 'a'"),
        ([1], "one of the verifiers is a name, or a mapping of model, weight, temperature, when, not 1"),
        ([{"heat": 1}], "what is said of a verifier is one of model, weight, temperature, when, not 'heat'"),
        ([{"when": "late"}], "when is one of always, way, end, not 'late'"),
        ({"a": "much"}, "weight is a number, not 'much'"),
    ):
        with pytest.raises(InvalidRequest, match=message):
            job_spec(verifiers=bad)


def test_prompt_settings_have_names_of_their_own() -> None:
    made = job_spec(step="7", step_prompt="## {step}", prompt_template="Q: {problem}", chat="never", system="", thoughts_end="")
    assert made.search.step.tokens == 7
    never = job_pb2.CHAT_RULE_NEVER
    assert made.prompt == job_pb2.Prompt(template="Q: {problem}", chat=never, step="## {step}", thoughts_end="")
    assert made.prompt.HasField("thoughts_end")
    with pytest.raises(InvalidRequest, match="chat is one of auto, always, never, not 'yes'"):
        job_spec(chat="yes")


def test_regions_are_names_or_a_text_with_commas() -> None:
    made = job_spec(regions=["eu-north", "eu-west"], carbon_weight="0.5").routing
    assert made == job_spec(regions="eu-north, eu-west", carbon_weight=0.5).routing
    assert made == job_pb2.Routing(regions=["eu-north", "eu-west"], carbon_weight=0.5)
    with pytest.raises(InvalidRequest, match="regions is names, with commas between them, not 3"):
        job_spec(regions=3)


def test_values_and_their_texts_say_the_same() -> None:
    typed = job_spec(
        generator="tiny24", n=16, temperature=1.5, finished="retire", aggregate="min", answer="weighted_vote", step=64,
        duplicates="keep", seed=2**64 - 1, tokens_max=1000,
    )  # fmt: skip
    texts = job_spec(
        generator="tiny24", n="16", temperature="1.5", finished="retire", aggregate="min", answer="weighted_vote",
        step="64", duplicates="keep", seed=str(2**64 - 1), tokens_max="1000",
    )  # fmt: skip
    assert typed == texts
    search = typed.search
    assert (search.policy, search.n, search.temperature, search.step.tokens) == ("beam", 16, 1.5, 64)
    assert search.finished == job_pb2.FINISHED_RULE_RETIRE
    assert search.answer == job_pb2.ANSWER_RULE_WEIGHTED_VOTE
    assert typed.budget.tokens_max == 1000
    assert not search.HasField("keep")


def test_a_step_is_an_answer_a_count_or_a_delimiter() -> None:
    assert job_spec(step="answer").search.step.answer
    assert job_spec(step="\n").search.step.delimiter == "\n"
    boundary = job_pb2.StepBoundary(delimiter="7")
    assert job_spec(step=boundary).search.step == boundary


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kep": 4}, "there is no knob kep; did you mean keep? there are policy, n, keep"),
        ({"zzz": 4}, "there is no knob zzz; there are policy"),
        ({"n": "many"}, "n is a whole number from 0 to 4,294,967,295, not 'many'"),
        ({"n": -1}, "not -1"),
        ({"n": 2**32}, "not 4294967296"),
        ({"n": 1.5}, "not 1.5"),
        ({"n": True}, "not True"),
        ({"temperature": "hot"}, "temperature is a number, not 'hot'"),
        ({"temperature": "nan"}, "temperature is a finite number, not 'nan'"),
        ({"temperature": None}, "temperature is a number, not None"),
        ({"finished": "stop"}, "finished is one of compete, retire, refill, not 'stop'"),
        ({"finished": "unspecified"}, "finished is one of compete, retire, refill"),
        ({"step": ""}, "step is answer, a number of tokens, or the delimiter that ends a step, not ''"),
        ({"step": "-3"}, "step is a whole number"),
        ({"policy": 3}, "policy is text, not 3"),
    ],
)
def test_a_wrong_field_says_what_is_expected(fields: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        job_spec(**fields)
    assert message in str(caught.value)


def test_words_of_enums() -> None:
    assert word(job_pb2.JobState.DESCRIPTOR, job_pb2.JOB_STATE_RUNNING) == "running"
    assert word(job_pb2.Verdict.DESCRIPTOR, job_pb2.VERDICT_UNSPECIFIED) == ""
    assert word(job_pb2.Verdict.DESCRIPTOR, 99) == "99"
