"""What a job must satisfy before anything of it is stored."""

from collections.abc import Sequence

from ramify.gateway.errors import InvalidRequest, NotReady
from ramify.scheduler.policies.knobs import KnobError, nearest
from ramify.scheduler.spec import fill_search
from ramify.store.jobs import ModelRow, NewProblem
from ramify.v1 import job_pb2
from ramify.verifier.errors import ProblemError
from ramify.verifier.rules import RULES

NAME_MAX = 200  # characters
REQUEST_ID_MAX = 128
TEXT_MAX = 256 * 1024
CHUNK_MAX = 10_000  # problems a message


def fill_spec(spec: job_pb2.JobSpec, models: Sequence[ModelRow]) -> job_pb2.JobSpec:
    """Check a spec and write every default out.

    Raises:
        InvalidRequest: names the field, what is wrong with it and what would be right.
        NotReady: the system has no models.
    """
    if len(spec.name) > NAME_MAX:
        raise InvalidRequest(f"spec.name has {len(spec.name)} characters, but at most {NAME_MAX} are allowed")
    generator = _model("generator", spec.generator, models)
    verifier = _model("verifier", spec.verifier, models)
    checker = _model("checker", spec.checker, models).name if spec.checker else ""
    try:
        search = fill_search(spec.search, generator.delimiter)
    except KnobError as error:
        raise InvalidRequest(f"spec.search: {error}") from error
    for name in ("tokens_max", "tokens_per_problem_max", "seconds_max"):
        if spec.budget.HasField(name) and getattr(spec.budget, name) == 0:  # type: ignore[arg-type]
            raise InvalidRequest(f"spec.budget.{name} is 0: nothing could run; leave it out for no bound")
    if spec.budget.HasField("tokens_per_problem_max") and spec.budget.tokens_per_problem_max < search.max_step_tokens:
        raise InvalidRequest(
            f"spec.budget.tokens_per_problem_max is {spec.budget.tokens_per_problem_max}, which does not pay for one step: "
            f"a step may take max_step_tokens = {search.max_step_tokens}"
        )
    return job_pb2.JobSpec(
        name=spec.name,
        generator=generator.name,
        verifier=verifier.name,
        checker=checker,
        search=search,
        budget=spec.budget,
    )


def _model(role: str, name: str, models: Sequence[ModelRow]) -> ModelRow:
    known = [model for model in models if model.role == role]
    if not known:
        raise NotReady(f"the system has no {role} yet; start it with `ramify up`, or wait until it is ready")
    if not name and len(known) == 1:
        return known[0]
    found = next((model for model in known if model.name == name), None)
    if found is None:
        names = [model.name for model in known]
        what = f"unknown {role} {name!r}{nearest(name, names)}" if name else f"spec.{role} is missing"
        raise InvalidRequest(f"{what}; this system has {', '.join(names)}")
    return found


def check_budget(spec: job_pb2.JobSpec, problems_total: int) -> None:
    """A job's tokens must pay for at least one step of every problem. Raises `InvalidRequest`."""
    need = problems_total * spec.search.max_step_tokens
    if spec.budget.HasField("tokens_max") and spec.budget.tokens_max < need:
        raise InvalidRequest(
            f"spec.budget.tokens_max is {spec.budget.tokens_max}, but {problems_total} problems of at least one step of "
            f"max_step_tokens = {spec.search.max_step_tokens} need {need}"
        )


def check_problems(
    problems: Sequence[job_pb2.Problem], offset: int, spec: job_pb2.JobSpec, models: Sequence[ModelRow]
) -> list[NewProblem]:
    """Check a chunk of problems and bring them into the form that the models read.

    Raises:
        InvalidRequest: names the problem by its index, and says what is wrong with it.
    """
    if len(problems) > CHUNK_MAX:
        raise InvalidRequest(f"{len(problems)} problems in one message, but at most {CHUNK_MAX} are allowed: send several")
    formats = {model.problem_format for model in models if model.role == "generator" and model.name == spec.generator}
    rules = [RULES[name] for name in sorted(formats | {spec.checker}) if name in RULES]
    found = []
    for index, problem in enumerate(problems, offset):
        prompt = problem.text
        if not prompt.strip():
            raise InvalidRequest(f"problem {index} has no text")
        if len(prompt) > TEXT_MAX:
            raise InvalidRequest(f"problem {index} has {len(prompt)} characters, but at most {TEXT_MAX} are allowed")
        for rule in rules:
            try:
                prompt = rule.normalise_problem(prompt)
            except ProblemError as error:
                raise InvalidRequest(f"problem {index}: {error}") from error
        found.append(NewProblem(problem, prompt))
    return found
