"""A job's spec: from the message to the core and back. Not part of the core, which knows no messages."""

from dataclasses import replace
from typing import Literal

from ramify.scheduler.comparers import UnknownRule, check_rule
from ramify.scheduler.engines.base import StepParams
from ramify.scheduler.placement import Routing
from ramify.scheduler.plan import UNBOUNDED, Generator, JobPlan, Verifier
from ramify.scheduler.policies.knobs import MEANING, KnobError, Knobs
from ramify.v1 import job_pb2

ENUMS = {
    "finished": (job_pb2.FinishedRule, "FINISHED_RULE_"),
    "aggregate": (job_pb2.Aggregate, "AGGREGATE_"),
    "answer": (job_pb2.AnswerRule, "ANSWER_RULE_"),
    "duplicates": (job_pb2.DuplicateRule, "DUPLICATE_RULE_"),
    "siblings": (job_pb2.SiblingRule, "SIBLING_RULE_"),
    "barrier": (job_pb2.BarrierRule, "BARRIER_RULE_"),
    "cut": (job_pb2.CutRule, "CUT_RULE_"),
    "extract": (job_pb2.ExtractRule, "EXTRACT_RULE_"),
    "stop": (job_pb2.StopRule, "STOP_RULE_"),
    "resample": (job_pb2.ResampleRule, "RESAMPLE_RULE_"),
    "belief": (job_pb2.BeliefRule, "BELIEF_RULE_"),
}
TEXTS = ("pattern", "compare")
WHEN: dict[int, Literal["always", "way", "end"]] = {
    job_pb2.WHEN_RULE_ALWAYS: "always",
    job_pb2.WHEN_RULE_WAY: "way",
    job_pb2.WHEN_RULE_END: "end",
}
DELIMITER_MAX = 64  # characters
PROBLEM = "{problem}"  # what stands in a prompt's template for the problem's text
THOUGHTS_END = "</think>"  # what ends the thoughts of a reasoning model, unless a job says otherwise


def knobs_of(search: job_pb2.Search) -> Knobs:
    """The knobs of a search, checked and with every default. Raises `KnobError`."""
    given: dict[str, int | float | str] = {"policy": search.policy} if search.policy else {}
    for name in MEANING:
        if name in ENUMS:
            enum, prefix = ENUMS[name]
            value = getattr(search, name)
            if value not in enum.values():
                raise KnobError(f"{name} is {value}, which this version doesn't know")
            if value:
                given[name] = enum.Name(value).removeprefix(prefix).lower()
        elif name in TEXTS:
            if getattr(search, name):
                given[name] = getattr(search, name)
        elif search.HasField(name):  # type: ignore[arg-type]  # the name of an optional number
            given[name] = getattr(search, name)
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
    try:
        check_rule(knobs["compare"])
    except UnknownRule as error:
        raise KnobError(str(error)) from error
    filled = job_pb2.Search(policy=knobs.policy, step=search.step)
    for name, value in knobs.values.items():
        if name in ENUMS:
            enum, prefix = ENUMS[name]
            value = enum.Value(prefix + str(value).upper())
        setattr(filled, name, value)
    if search.step.WhichOneof("boundary") is None:
        filled.step.delimiter = delimiter
    return filled


def plan_of(job_id: str, spec: job_pb2.JobSpec, problems_total: int, started_ms: int) -> JobPlan:
    """What the core has to know of a job; `spec` has every default filled in.

    What the job may spend is shared out evenly: a tree's part depends neither on the other trees nor on a restart.
    """
    knobs, budget = knobs_of(spec.search), spec.budget
    by_text = spec.search.step.WhichOneof("boundary") == "delimiter"
    return JobPlan(
        job_id=job_id,
        policy=knobs.build(),
        params=StepParams(
            temperature=knobs["temperature"],
            top_p=knobs["top_p"],
            max_step_tokens=knobs["max_step_tokens"],
            delimiter=spec.search.step.delimiter if by_text else None,
        ),
        generators=generators_of(spec),
        verifiers=verifiers_of(spec),
        checker=spec.checker,
        aggregate=knobs["aggregate"],
        answer=knobs["answer"],
        cut=knobs["cut"],
        extract=replace(knobs.extract(), thoughts_end=spec.prompt.thoughts_end),
        compare=knobs["compare"],
        tolerance=knobs["tolerance"],
        spread_siblings=knobs["siblings"] == "spread",
        tokens_per_tree_max=share(budget, "tokens_per_problem_max", "tokens_max", problems_total),
        steps_per_tree_max=share(budget, "steps_per_problem_max", "steps_max", problems_total),
        deadline_ms=started_ms + 1000 * budget.seconds_max if budget.HasField("seconds_max") else UNBOUNDED,
        step_prompt=spec.prompt.step,
        routing=routing_of(spec.routing),
    )


def routing_of(routing: job_pb2.Routing) -> Routing:
    """Where a job's steps may be sampled, and what matters to it."""
    weights = {field.name: value for field, value in routing.ListFields() if field.name != "regions"}
    return Routing(tuple(routing.regions), **weights)


def generators_of(spec: job_pb2.JobSpec) -> tuple[Generator, ...]:
    """The models that write a job's steps, with their weights."""
    several = tuple(Generator(each.model, each.weight if each.HasField("weight") else 1.0) for each in spec.generators)
    return several or (Generator(spec.generator),)


def verifiers_of(spec: job_pb2.JobSpec) -> tuple[Verifier, ...]:
    """The models that score a job's steps; `spec` has every default filled in."""
    several = tuple(Verifier(each.model, each.weight, each.temperature, WHEN[each.when]) for each in spec.verifiers)
    return several or (Verifier(spec.verifier),)


def share(budget: job_pb2.Budget, own: str, whole: str, problems_total: int) -> int:
    """What one tree may spend: its own bound, or its even part of the job's where that is less."""
    bounds = [UNBOUNDED]
    if budget.HasField(own):  # type: ignore[arg-type]
        bounds.append(getattr(budget, own))
    if budget.HasField(whole):  # type: ignore[arg-type]
        bounds.append(getattr(budget, whole) // max(1, problems_total))
    return min(bounds)
