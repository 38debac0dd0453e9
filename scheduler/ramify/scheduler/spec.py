"""A job's spec: from the message to the core and back. Not part of the core, which knows no messages."""

from ramify.scheduler.engines.base import StepParams
from ramify.scheduler.plan import UNBOUNDED, JobPlan
from ramify.scheduler.policies.knobs import BEAM_ONLY, KnobError, Knobs
from ramify.v1 import job_pb2

NUMBERS = ("n", "keep", "branch", "max_steps", "max_step_tokens", "temperature", "top_p", "threshold", "seed")
ENUMS = {
    "finished": (job_pb2.FinishedRule, "FINISHED_RULE_"),
    "aggregate": (job_pb2.Aggregate, "AGGREGATE_"),
    "answer": (job_pb2.AnswerRule, "ANSWER_RULE_"),
    "duplicates": (job_pb2.DuplicateRule, "DUPLICATE_RULE_"),
    "siblings": (job_pb2.SiblingRule, "SIBLING_RULE_"),
}
DELIMITER_MAX = 64  # characters


def knobs_of(search: job_pb2.Search) -> Knobs:
    """The knobs of a search, checked and with every default. Raises `KnobError`."""
    given: dict[str, int | float | str] = {"policy": search.policy} if search.policy else {}
    given |= {name: getattr(search, name) for name in NUMBERS if search.HasField(name)}  # type: ignore[arg-type]
    for name, (enum, prefix) in ENUMS.items():
        value = getattr(search, name)
        if value not in enum.values():
            raise KnobError(f"{name} is {value}, which this version doesn't know")
        if value:
            given[name] = enum.Name(value).removeprefix(prefix).lower()
    boundary = search.step.WhichOneof("boundary")
    if boundary == "tokens":
        if "max_step_tokens" in given and given["max_step_tokens"] != search.step.tokens:
            raise KnobError("step in tokens and max_step_tokens say the same thing twice: give one of them")
        given["max_step_tokens"] = search.step.tokens
    if boundary == "answer" and not search.step.answer:
        raise KnobError("step.answer must be true where it is set")
    if boundary == "delimiter" and not 1 <= len(search.step.delimiter) <= DELIMITER_MAX:
        raise KnobError(f"step.delimiter must have 1 to {DELIMITER_MAX} characters")
    return Knobs.fill(given)


def fill_search(search: job_pb2.Search, delimiter: str) -> job_pb2.Search:
    """The same search with every default written out; `delimiter` is the generator's own. Raises `KnobError`."""
    knobs = knobs_of(search)
    filled = job_pb2.Search(policy=knobs.policy, step=search.step)
    for name in NUMBERS:
        if knobs.policy == "beam" or name not in BEAM_ONLY:
            setattr(filled, name, getattr(knobs, name))
    for name, (enum, prefix) in ENUMS.items():
        if knobs.policy == "beam" or name in ("aggregate", "answer", "siblings"):
            setattr(filled, name, enum.Value(prefix + getattr(knobs, name).upper()))
    if search.step.WhichOneof("boundary") is None:
        filled.step.delimiter = delimiter
    return filled


def plan_of(job_id: str, spec: job_pb2.JobSpec, problems_total: int, started_ms: int) -> JobPlan:
    """What the core has to know of a job; `spec` has every default filled in.

    The tokens of the job are shared out evenly: a tree's part depends neither on the other trees nor on a restart.
    """
    knobs, budget = knobs_of(spec.search), spec.budget
    per_tree = [UNBOUNDED]
    if budget.HasField("tokens_per_problem_max"):
        per_tree.append(budget.tokens_per_problem_max)
    if budget.HasField("tokens_max"):
        per_tree.append(budget.tokens_max // max(1, problems_total))
    by_text = spec.search.step.WhichOneof("boundary") == "delimiter"
    return JobPlan(
        job_id=job_id,
        policy=knobs.build(),
        params=StepParams(
            temperature=knobs.temperature,
            top_p=knobs.top_p,
            max_step_tokens=knobs.max_step_tokens,
            delimiter=spec.search.step.delimiter if by_text else None,
        ),
        generator=spec.generator,
        verifier=spec.verifier,
        checker=spec.checker,
        aggregate=knobs.aggregate,
        answer=knobs.answer,
        spread_siblings=knobs.siblings == "spread",
        tokens_per_tree_max=min(per_tree),
        deadline_ms=started_ms + 1000 * budget.seconds_max if budget.HasField("seconds_max") else UNBOUNDED,
    )
