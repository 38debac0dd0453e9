"""What a job must satisfy before anything of it is stored."""

import unicodedata
from collections.abc import Sequence

from ramify.gateway.errors import InvalidRequest, NotReady
from ramify.scheduler.policies.knobs import KnobError, nearest
from ramify.scheduler.spec import PROBLEM, THOUGHTS_END, WHEN, fill_search, knobs_of
from ramify.store.jobs import ModelRow
from ramify.store.submissions import NewProblem
from ramify.v1 import job_pb2
from ramify.verifier.errors import ProblemError
from ramify.verifier.rules import rule_here

NAME_MAX = 200  # characters
REQUEST_ID_MAX = 128
ID_MAX = 512  # of a problem
TEXT_MAX = 256 * 1024
CHUNK_MAX = 10_000  # problems a message
PROMPT_MAX = 64 * 1024  # characters of a system prompt, or of a template
STEP_PROMPT_MAX = 1024
THOUGHTS_END_MAX = 64
PATTERN_MAX = 4096
SPEC_BYTES_MAX = 1 << 20  # with what this version doesn't know: it is kept as it came
REGIONS_MAX = 100
PRIORITY_MAX = 100  # and its negative the least
WEIGHT_MAX = 10**6  # of a price, a round trip, carbon, or a model
MODELS_MAX = 8  # generators, and verifiers, of one job
TEMPERATURES = (0.01, 100)  # of a verifier's scores
BUDGET_MAX = 2**48  # of anything: what is larger overruns the core's 64-bit columns, and is no bound anyway


def check_request_id(request_id: str) -> None:
    """Raises `InvalidRequest` for one that can't name a request."""
    if not request_id:
        raise InvalidRequest("request_id is missing in the first message; make one up, best a UUID, and repeat it on a retry")
    _check_text("request_id", request_id, REQUEST_ID_MAX)
    if any(unicodedata.category(character) == "Cc" for character in request_id):
        raise InvalidRequest(f"request_id {request_id!r} holds a control character: take a printable one, best a UUID")


def fill_spec(spec: job_pb2.JobSpec, models: Sequence[ModelRow]) -> job_pb2.JobSpec:
    """Check a spec and write every default out.

    Raises:
        InvalidRequest: names the field, what is wrong with it and what would be right.
        NotReady: the system has no models.
    """
    if spec.ByteSize() > SPEC_BYTES_MAX:
        raise InvalidRequest(f"spec has {spec.ByteSize():,} bytes, but at most {SPEC_BYTES_MAX:,} are allowed")
    _check_text("spec.name", spec.name, NAME_MAX)
    for knob, most in (("policy", NAME_MAX), ("compare", NAME_MAX), ("pattern", PATTERN_MAX)):
        _check_text(f"spec.search.{knob}", getattr(spec.search, knob), most)
    if abs(spec.priority) > PRIORITY_MAX:
        raise InvalidRequest(f"spec.priority is {spec.priority}, not from -{PRIORITY_MAX} to {PRIORITY_MAX}")
    generators = fill_generators(spec, models)
    verifiers = fill_verifiers(spec, models)
    checker = _model("checker", spec.checker, models).name if spec.checker else ""
    try:
        search = fill_search(spec.search, _delimiter(spec.search, generators, models))
    except KnobError as error:
        raise InvalidRequest(f"spec.search: {error}") from error
    check_judges(verifiers, search)
    for name, value in spec.budget.ListFields():
        if not 1 <= value <= BUDGET_MAX:
            problem = "nothing could run" if value == 0 else f"at most {BUDGET_MAX} is allowed"
            raise InvalidRequest(f"spec.budget.{name.name} is {value}: {problem}; leave it out for no bound")
    if spec.budget.HasField("tokens_per_problem_max") and spec.budget.tokens_per_problem_max < search.max_step_tokens:
        raise InvalidRequest(
            f"spec.budget.tokens_per_problem_max is {spec.budget.tokens_per_problem_max}, which does not pay for one step: "
            f"a step may take max_step_tokens = {search.max_step_tokens}; raise the one or lower the other"
        )
    alone = _counts_as_it_is(verifiers)
    return job_pb2.JobSpec(
        name=spec.name,
        generator=generators[0].model if len(generators) == 1 else "",
        generators=generators if len(generators) > 1 else [],
        verifier=verifiers[0].model if alone else "",
        verifiers=[] if alone else verifiers,
        checker=checker,
        search=search,
        budget=spec.budget,
        prompt=fill_prompt(spec.prompt),
        routing=check_routing(spec.routing) if spec.HasField("routing") else None,
        priority=spec.priority,
    )


def fill_generators(spec: job_pb2.JobSpec, models: Sequence[ModelRow]) -> list[job_pb2.Generator]:
    """Check the models that are to write a job's steps; one at least. Raises `InvalidRequest`, `NotReady`."""
    if not spec.generators:
        return [job_pb2.Generator(model=_model("generator", spec.generator, models).name)]
    if spec.generator:
        raise InvalidRequest("spec.generator and spec.generators are both given: give the one or the other")
    if len(spec.generators) > MODELS_MAX:
        raise InvalidRequest(f"spec.generators are {len(spec.generators)}, but at most {MODELS_MAX} are allowed")
    filled: dict[str, job_pb2.Generator] = {}
    for each in spec.generators:
        name, weight = _model("generator", each.model, models).name, each.weight if each.HasField("weight") else 1.0
        if name in filled:
            raise InvalidRequest(f"spec.generators names {name} twice: add up its weights")
        _check_weight("generators", name, weight)
        filled[name] = job_pb2.Generator(model=name, weight=weight)
    return [*filled.values()]


def fill_verifiers(spec: job_pb2.JobSpec, models: Sequence[ModelRow]) -> list[job_pb2.Verifier]:
    """Check the models that are to score a job's steps; one at least. Raises `InvalidRequest`, `NotReady`."""
    given = spec.verifiers or [job_pb2.Verifier(model=spec.verifier)]
    if spec.verifier and spec.verifiers:
        raise InvalidRequest("spec.verifier and spec.verifiers are both given: give the one or the other")
    if len(given) > MODELS_MAX:
        raise InvalidRequest(f"spec.verifiers are {len(given)}, but at most {MODELS_MAX} are allowed")
    filled: dict[str, job_pb2.Verifier] = {}
    for each in given:
        filling = job_pb2.Verifier(weight=1.0, temperature=1.0, when=job_pb2.WHEN_RULE_ALWAYS)
        filling.MergeFrom(each)
        name = filling.model = _model("verifier", each.model, models).name
        if name in filled:
            raise InvalidRequest(f"spec.verifiers names {name} twice: name it once, with the sum of its weights")
        _check_weight("verifiers", name, filling.weight)
        low, high = TEMPERATURES
        if not low <= filling.temperature <= high:
            raise InvalidRequest(
                f"spec.verifiers: the temperature of {name} is {filling.temperature:g}, not from {low} to {high}; 1 leaves its "
                "scores as they are"
            )
        if filling.when not in WHEN:
            raise InvalidRequest(
                f"spec.verifiers: when of {name} is {filling.when}, which this version doesn't know: say always, way or end"
            )
        filled[name] = filling
    return [*filled.values()]


def check_judges(verifiers: Sequence[job_pb2.Verifier], search: job_pb2.Search) -> None:
    """Some verifier must judge the steps on the way where their scores count. Raises `InvalidRequest`."""
    if any(each.when != job_pb2.WHEN_RULE_END for each in verifiers):
        return
    if knobs_of(search).build().scores == "step":
        raise InvalidRequest(
            f"spec.verifiers are all asked about the end alone, and {search.policy} steers by the scores of steps on the way: "
            "add one that is asked always or on the way (when always, way), or use policy=best_of_n"
        )
    if search.aggregate != job_pb2.AGGREGATE_LAST:
        raise InvalidRequest(
            "spec.verifiers are all asked about the end alone, and spec.search.aggregate needs the scores of all steps: say "
            "aggregate=last, or add one that is asked always or on the way (when always, way)"
        )


def _counts_as_it_is(verifiers: Sequence[job_pb2.Verifier]) -> bool:
    """Whether there is a single one, whose scores are taken over."""
    return len(verifiers) == 1 and verifiers[0].temperature == 1.0 and verifiers[0].when != job_pb2.WHEN_RULE_END


def _check_weight(field: str, name: str, weight: float) -> None:
    if not 0 < weight <= WEIGHT_MAX:
        raise InvalidRequest(f"spec.{field}: the weight of {name} is {weight:g}, not above 0 and up to {WEIGHT_MAX:,}")


def _delimiter(search: job_pb2.Search, generators: Sequence[job_pb2.Generator], models: Sequence[ModelRow]) -> str:
    """Where steps end unless the job says so. Raises `InvalidRequest` where its models don't agree."""
    first, *others = (_model("generator", each.model, models) for each in generators)
    for other in others:
        if other.delimiter != first.delimiter and search.step.WhichOneof("boundary") is None:
            raise InvalidRequest(
                f"spec.search.step is missing, and {first.name} ends steps with {first.delimiter!r}, {other.name} with "
                f"{other.delimiter!r}: say which"
            )
    return first.delimiter


def fill_prompt(prompt: job_pb2.Prompt) -> job_pb2.Prompt:
    """Check prompt settings and write every default out. Raises `InvalidRequest`."""
    for name, most in (
        ("system", PROMPT_MAX),
        ("template", PROMPT_MAX),
        ("step", STEP_PROMPT_MAX),
        ("thoughts_end", THOUGHTS_END_MAX),
    ):
        _check_text(f"spec.prompt.{name}", getattr(prompt, name), most)
    if prompt.template and PROBLEM not in prompt.template:
        raise InvalidRequest(f"spec.prompt.template lacks {PROBLEM}: put it where the problem's text is to stand")
    if prompt.chat not in job_pb2.ChatRule.values():
        raise InvalidRequest(f"spec.prompt.chat is {prompt.chat}, which this version doesn't know: say auto, always or never")
    filled = job_pb2.Prompt(chat=job_pb2.CHAT_RULE_AUTO, thoughts_end=THOUGHTS_END)
    filled.MergeFrom(prompt)
    return filled


def check_routing(routing: job_pb2.Routing) -> job_pb2.Routing:
    """Raises `InvalidRequest`. That a region has an engine is not checked: one may join later, and until then the job says so."""
    for field, value in routing.ListFields():
        if field.name != "regions" and not 0 <= value <= WEIGHT_MAX:
            raise InvalidRequest(f"spec.routing.{field.name} is {value}, not from 0 to {WEIGHT_MAX:,}")
    if len(routing.regions) > REGIONS_MAX:
        raise InvalidRequest(f"spec.routing.regions are {len(routing.regions)}, but at most {REGIONS_MAX} are allowed")
    for at, region in enumerate(routing.regions):
        _check_text(f"spec.routing.regions {at}", region, NAME_MAX)
        if not region:
            raise InvalidRequest(f"spec.routing.regions {at} is empty: name a region, or leave regions out for any")
    return routing


def _model(role: str, name: str, models: Sequence[ModelRow]) -> ModelRow:
    _check_text(f"spec.{role}", name, NAME_MAX)
    if not models:
        raise NotReady("the system has no models yet; start it with `ramify up`, or wait until it is ready")
    known = {model.name: model for model in models if model.role == role}
    if name in known:
        return known[name]
    if not name and len(known) == 1:
        return next(iter(known.values()))
    what = f"spec.{role} is {name!r}, which is unknown{nearest(name, list(known))}" if name else f"spec.{role} is missing"
    raise InvalidRequest(f"{what}; this system has {', '.join(known) or f'no {role}'}")


def check_budget(spec: job_pb2.JobSpec, problems_total: int) -> None:
    """A job's tokens and steps must pay for at least one step of every problem. Raises `InvalidRequest`."""
    need = problems_total * spec.search.max_step_tokens
    if spec.budget.HasField("tokens_max") and spec.budget.tokens_max < need:
        raise InvalidRequest(
            f"spec.budget.tokens_max is {spec.budget.tokens_max}, but {problems_total} problems of at least one step of "
            f"max_step_tokens = {spec.search.max_step_tokens} need {need}; raise the one or lower the other"
        )
    if spec.budget.HasField("steps_max") and spec.budget.steps_max < problems_total:
        raise InvalidRequest(
            f"spec.budget.steps_max is {spec.budget.steps_max}, but {problems_total} problems of at least one step each need "
            f"{problems_total}; raise it"
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
    names = {each.model for each in spec.generators} | {spec.generator}
    formats = {model.problem_format for model in models if model.role == "generator" and model.name in names}
    rules = [rule for name in sorted(formats | {spec.checker}) if (rule := rule_here(name)) is not None]
    found = []
    for index, problem in enumerate(problems, offset):
        prompt = problem.text
        if not prompt.strip():
            raise InvalidRequest(f"problem {index} has no text")
        for name, text, most in (
            ("text", prompt, TEXT_MAX),
            ("reference", problem.reference, TEXT_MAX),
            ("id", problem.id, ID_MAX),
        ):
            _check_text(f"the {name} of problem {index}", text, most)
        for rule in rules:
            try:
                prompt = rule.normalise_problem(prompt)
                rule.check_reference(problem.reference)
            except ProblemError as error:
                raise InvalidRequest(f"problem {index}: {error}") from error
        found.append(NewProblem(problem, prompt))
    return found


def _check_text(name: str, text: str, most: int) -> None:
    if len(text) > most:
        raise InvalidRequest(f"{name} has {len(text)} characters, but at most {most} are allowed")
    if "\0" in text:
        raise InvalidRequest(f"{name} holds the character NUL, which no database keeps: take it out")
