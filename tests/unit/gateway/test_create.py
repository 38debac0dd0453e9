"""CreateJob over real gRPC: what it takes, what it refuses, and that a refusal leaves nothing behind."""

import re
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from sqlalchemy import text

from ramify.gateway.limits import GatewayLimits
from ramify.store.errors import JobNotFound
from ramify.v1 import job_pb2
from ramify.v1 import job_service_pb2 as pb
from tests.unit.gateway.system import PUZZLES, SPEC, System, failure, first, further, problems, running

INVALID, CONFLICT = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.ALREADY_EXISTS
UPLOADING, RUNNING = job_pb2.JOB_STATE_UPLOADING, job_pb2.JOB_STATE_RUNNING


def spec(**fields: object) -> job_pb2.JobSpec:
    changed = job_pb2.JobSpec()
    changed.CopyFrom(SPEC)
    changed.MergeFrom(job_pb2.JobSpec(**fields))  # type: ignore[arg-type]  # fields of the message
    return changed


async def test_a_job_in_one_message(system: System) -> None:
    job = await system.running_job()
    assert (job.state, job.progress.problems_total) == (RUNNING, 3)
    search = job.spec.search
    assert (search.policy, search.n, search.keep, search.branch, search.step.delimiter) == ("beam", 16, 4, 4, "\n")
    assert job.spec.checker == "countdown"
    assert await system.listed() == [job]


async def test_several_generators_have_their_weights_written_out(system: System) -> None:
    tiny = System.MODELS[0]
    await system.jobs.put_models([*System.MODELS, replace(tiny, name="b"), replace(tiny, name="c", delimiter=";")])
    two = mixed(GENERATOR(model="tiny24"), GENERATOR(model="b", weight=3))
    job = await system.create(first(spec=two, some=problems("10,4  5 6"), last=True))
    assert not job.spec.generator
    assert [*job.spec.generators] == [GENERATOR(model="tiny24", weight=1), GENERATOR(model="b", weight=3)]
    one = await system.create(first("one", spec=mixed(GENERATOR(model="b", weight=3)), some=PUZZLES, last=True))
    assert (one.spec.generator, len(one.spec.generators)) == ("b", 0)
    unlike = mixed(GENERATOR(model="tiny24"), GENERATOR(model="c"))
    code, message = await failure(system.upload().send(first("unlike", spec=unlike)))
    assert code is INVALID
    assert message == "spec.search.step is missing, and tiny24 ends steps with '\\n', c with ';': say which"
    unlike.search.step.delimiter = ";"
    assert (await system.create(first("unlike", spec=unlike, some=PUZZLES))).spec.search.step.delimiter == ";"


async def test_several_verifiers_have_their_defaults_written_out(system: System) -> None:
    await system.jobs.put_models([*System.MODELS, replace(System.MODELS[1], name="orm")])
    prm, orm = VERIFIER(model="tiny24-prm", weight=3, temperature=1.5), VERIFIER(model="orm", when=END)
    both = await system.create(first(spec=judged(prm, orm), some=PUZZLES, last=True))
    assert not both.spec.verifier
    assert [*both.spec.verifiers] == [
        VERIFIER(model="tiny24-prm", weight=3, temperature=1.5, when=ALWAYS),
        VERIFIER(model="orm", weight=1, temperature=1, when=END),
    ]
    plain = await system.create(first("one", spec=judged(VERIFIER(model="orm", weight=3, when=WAY)), some=PUZZLES, last=True))
    assert (plain.spec.verifier, len(plain.spec.verifiers)) == ("orm", 0), "alone, it is as good as always, whatever its weight"
    for name, alone in (("calibrated", VERIFIER(model="orm", temperature=2)), ("outcome", orm)):
        spec = judged(alone)
        spec.search.policy = "best_of_n"
        job = await system.create(first(name, spec=spec, some=PUZZLES, last=True))
        assert (job.spec.verifier, [each.model for each in job.spec.verifiers]) == ("", ["orm"])


async def test_prompt_settings_have_their_defaults_written_out(system: System) -> None:
    job = await system.create(first(some=PUZZLES, last=True))
    assert job.spec.prompt == PROMPT(chat=job_pb2.CHAT_RULE_AUTO, thoughts_end="</think>")
    given = PROMPT(system="s", template="{problem}?", chat=job_pb2.CHAT_RULE_NEVER, step="{step}. ", thoughts_end="")
    job = await system.create(first("other", spec=spec(prompt=given), some=PUZZLES, last=True))
    assert job.spec.prompt == given


async def test_an_upload_in_chunks(system: System) -> None:
    upload = system.upload()
    answers = [
        await upload.send(first()),
        await upload.send(further(0, PUZZLES[0])),
        await upload.send(further(1, *PUZZLES[1:])),
        await upload.send(further(0, last=True)),
    ]
    await upload.end()
    assert [answer.problems_received for answer in answers] == [0, 1, 3, 3]
    assert [answer.job.state for answer in answers] == [UPLOADING] * 3 + [RUNNING]


async def test_problems_are_stored_as_sent_and_as_the_models_read_them(system: System) -> None:
    await system.create(first(some=problems("10,4  5 6"), last=True))
    async with system.database.read() as connection:
        assert (await connection.execute(text("SELECT text, prompt FROM problems"))).all() == [("10,4  5 6", "4 5 6 10>24")]


async def test_a_job_says_where_it_may_run_and_what_matters_to_it(system: System) -> None:
    plain = await system.create(first(some=PUZZLES, last=True))
    assert not plain.spec.HasField("routing")
    given = ROUTING(regions=["eu-north", "nowhere yet"], carbon_weight=0.0)
    job = await system.create(first("other", spec=spec(routing=given), some=PUZZLES, last=True))
    assert job.spec.routing == given


async def test_a_repeated_request_is_the_same_job_though_the_models_have_gone(system: System) -> None:
    job = await system.running_job()
    await system.jobs.put_models([])
    assert await system.running_job() == job
    assert await system.listed() == [job]


async def test_a_broken_upload_is_taken_up_again(system: System) -> None:
    broken = system.upload()
    await broken.send(first(some=PUZZLES[:1]))
    await broken.send(further(1, PUZZLES[1]))
    broken.call.cancel()
    again = system.upload()
    answer = await again.send(first())
    assert answer.problems_received == 2
    await again.send(further(1, *PUZZLES[1:], last=True))
    await again.end()
    (job,) = await system.listed()
    assert (job.state, job.progress.problems_total) == (RUNNING, 3)


async def test_an_upload_without_an_end_waits_for_more(system: System) -> None:
    job = await system.create(first(some=PUZZLES[:2]))
    assert (job.state, job.progress.problems_total) == (UPLOADING, 2)
    assert await system.listed() == [job]


NO_PUZZLE = problems("4 5 six 10")
SEARCH, BUDGET, PROMPT, ROUTING = job_pb2.Search, job_pb2.Budget, job_pb2.Prompt, job_pb2.Routing

GENERATOR, VERIFIER = job_pb2.Generator, job_pb2.Verifier
ALWAYS, WAY, END = job_pb2.WHEN_RULE_ALWAYS, job_pb2.WHEN_RULE_WAY, job_pb2.WHEN_RULE_END


def mixed(*generators: job_pb2.Generator) -> job_pb2.JobSpec:
    return job_pb2.JobSpec(generators=generators, verifier="tiny24-prm")


def judged(*verifiers: job_pb2.Verifier, **search: object) -> job_pb2.JobSpec:
    return job_pb2.JobSpec(verifiers=verifiers, search=SEARCH(**search))  # type: ignore[arg-type]  # fields of the message


BAD_FIRST = {
    "no request_id": (first("", some=PUZZLES), "request_id is missing"),
    "a long request_id": (first("x" * 129), "request_id has 129 characters, but at most 128"),
    "NUL in request_id": (first("a\0b"), "request_id holds the character NUL"),
    "a long name": (first(spec=spec(name="x" * 201)), "spec.name has 201 characters, but at most 200"),
    "generator": (
        first(spec=spec(generator="tiny42")),
        "spec.generator is 'tiny42', which is unknown (did you mean tiny24?); this system has tiny24",
    ),
    "verifier": (first(spec=spec(verifier="tiny24-orm")), "(did you mean tiny24-prm?); this system has tiny24-prm"),
    "checker": (first(spec=spec(checker="countdwon")), "(did you mean countdown?); this system has countdown"),
    "policy": (first(spec=spec(search=SEARCH(policy="baem"))), "spec.search: unknown policy 'baem' (did you mean beam?)"),
    "beam's shape": (first(spec=spec(search=SEARCH(n=16, keep=4, branch=3))), "keep*branch is 4*3 = 12, but n is 16"),
    "n": (first(spec=spec(search=SEARCH(n=0))), "n is 0, but must be from 1 to 4096"),
    "temperature": (first(spec=spec(search=SEARCH(temperature=float("nan")))), "temperature is nan"),
    "budget 0": (first(spec=spec(budget=BUDGET(tokens_max=0))), "spec.budget.tokens_max is 0: nothing could run"),
    "seconds 0": (first(spec=spec(budget=BUDGET(seconds_max=0))), "spec.budget.seconds_max is 0"),
    "endless seconds": (first(spec=spec(budget=BUDGET(seconds_max=2**63))), "at most 281474976710656 is allowed"),
    "less than a step": (
        first(spec=spec(budget=BUDGET(tokens_per_problem_max=255))),
        "tokens_per_problem_max is 255, which does not pay for one step: a step may take max_step_tokens = 256",
    ),
    "less than a step each": (
        first(spec=spec(budget=BUDGET(tokens_max=3 * 256 - 1)), some=PUZZLES, last=True),
        "tokens_max is 767, but 3 problems of at least one step of max_step_tokens = 256 need 768",
    ),
    "steps 0": (first(spec=spec(budget=BUDGET(steps_max=0))), "spec.budget.steps_max is 0: nothing could run"),
    "no step each": (
        first(spec=spec(budget=BUDGET(steps_max=2)), some=PUZZLES, last=True),
        "steps_max is 2, but 3 problems of at least one step each need 3",
    ),
    "two ways to name generators": (
        first(spec=spec(generators=[GENERATOR(model="tiny24")])),
        "spec.generator and spec.generators are both given: give the one or the other",
    ),
    "an unknown one of several": (
        first(spec=mixed(GENERATOR(model="tiny42"))),
        "is 'tiny42', which is unknown (did you mean tiny24?)",
    ),
    "one of several, twice": (first(spec=mixed(*[GENERATOR(model="tiny24")] * 2)), "names tiny24 twice: add up its weights"),
    "many generators": (first(spec=mixed(*[GENERATOR(model="tiny24")] * 9)), "are 9, but at most 8 are allowed"),
    **{
        f"a weight of {weight}": (
            first(spec=mixed(GENERATOR(model="tiny24", weight=weight))),
            f"the weight of tiny24 is {weight:g}, not above 0 and up to 1,000,000",
        )
        for weight in (0.0, -1.0, 1e9, float("nan"))
    },
    "two ways to name verifiers": (
        first(spec=spec(verifiers=[VERIFIER(model="tiny24-prm")])),
        "spec.verifier and spec.verifiers are both given: give the one or the other",
    ),
    "an unknown verifier of several": (
        first(spec=judged(VERIFIER(model="tiny24-orm"))),
        "is 'tiny24-orm', which is unknown (did you mean tiny24-prm?)",
    ),
    "one of several verifiers, twice": (
        first(spec=judged(*[VERIFIER(model="tiny24-prm")] * 2)),
        "spec.verifiers names tiny24-prm twice: name it once, with the sum of its weights",
    ),
    "many verifiers": (first(spec=judged(*[VERIFIER(model="tiny24-prm")] * 9)), "are 9, but at most 8 are allowed"),
    **{
        f"a verifier's weight of {weight}": (
            first(spec=judged(VERIFIER(model="tiny24-prm", weight=weight))),
            f"spec.verifiers: the weight of tiny24-prm is {weight:g}, not above 0 and up to 1,000,000",
        )
        for weight in (0.0, -1.0, float("inf"), float("nan"))
    },
    **{
        f"a verifier's temperature of {temperature}": (
            first(spec=judged(VERIFIER(model="tiny24-prm", temperature=temperature))),
            f"spec.verifiers: the temperature of tiny24-prm is {temperature:g}, not from 0.01 to 100; 1 leaves its scores as",
        )
        for temperature in (0.0, 0.009, 101.0, float("inf"), float("nan"))
    },
    "when a verifier is asked": (
        first(spec=judged(VERIFIER(model="tiny24-prm", when=9))),  # type: ignore[arg-type]
        "spec.verifiers: when of tiny24-prm is 9, which this version doesn't know: say always, way or end",
    ),
    "nobody judges on the way": (
        first(spec=judged(VERIFIER(model="tiny24-prm", when=END))),
        "spec.verifiers are all asked about the end alone, and beam steers by the scores of steps on the way: add one",
    ),
    "nobody judges steps that count": (
        first(spec=judged(VERIFIER(model="tiny24-prm", when=END), policy="best_of_n", aggregate=job_pb2.AGGREGATE_MIN)),
        "spec.search.aggregate needs the scores of all steps: say aggregate=last, or add one",
    ),
    "a template": (
        first(spec=spec(prompt=PROMPT(template="solve it"))),
        "spec.prompt.template lacks {problem}: put it where the problem's text is to stand",
    ),
    "a long system prompt": (first(spec=spec(prompt=PROMPT(system="x" * 65_537))), "spec.prompt.system has 65537 characters"),
    "a long step prompt": (first(spec=spec(prompt=PROMPT(step="x" * 1025))), "but at most 1024 are allowed"),
    "a long end of thoughts": (first(spec=spec(prompt=PROMPT(thoughts_end="x" * 65))), "but at most 64 are allowed"),
    "NUL in a prompt": (first(spec=spec(prompt=PROMPT(system="\0"))), "spec.prompt.system holds the character NUL"),
    "chat": (
        first(spec=spec(prompt=PROMPT(chat=9))),  # type: ignore[arg-type]
        "spec.prompt.chat is 9, which this version doesn't know: say auto, always or never",
    ),
    "a region without a name": (
        first(spec=spec(routing=ROUTING(regions=["eu", ""]))),
        "spec.routing.regions 1 is empty: name a region, or leave regions out for any",
    ),
    "a weight below nothing": (
        first(spec=spec(routing=ROUTING(carbon_weight=-1))),
        "carbon_weight is -1.0, not from 0 to 1,000,000",
    ),
    "a weight that is no number": (
        first(spec=spec(routing=ROUTING(price_weight=float("nan")))),
        "price_weight is nan, not from 0",
    ),
    "no text": (first(some=[*PUZZLES, job_pb2.Problem(text=" ")], last=True), "problem 3 has no text"),
    "a long text": (first(some=problems("1" * 300_000)), "the text of problem 0 has 300000 characters"),
    "a long id": (first(some=[job_pb2.Problem(text="4 5 6 10", id="x" * 513)]), "the id of problem 0 has 513 characters"),
    "NUL": (first(some=[job_pb2.Problem(text="4 5 6 10", reference="\0")]), "the reference of problem 0 holds the character NUL"),
    "no puzzle": (first(some=[*PUZZLES, *NO_PUZZLE]), "problem 3: '4 5 six 10' is no puzzle: 'six' is not a number"),
    "many problems": (first(some=PUZZLES[:1] * 10_001), "10001 problems in one message, but at most 10000"),
    "a gap": (pb.CreateJobRequest(request_id="r", spec=SPEC, problems=PUZZLES, offset=1), "starts at problem 1, but only 0 are"),
    "a gap beyond all": (pb.CreateJobRequest(request_id="r", spec=SPEC, problems=PUZZLES, offset=2**64 - 1), "but only 0 are"),
    "no problems": (first(last=True), "a job needs at least one problem"),
    "equal ids": (first(some=[job_pb2.Problem(id="a", text="4 5 6 10")] * 2), "two problems have the id 'a'"),
}


@pytest.mark.parametrize("bad", BAD_FIRST.values(), ids=BAD_FIRST.keys())
async def test_a_first_message_that_is_refused_makes_no_job(system: System, bad: tuple[pb.CreateJobRequest, str]) -> None:
    request, says = bad
    code, message = await failure(system.upload().send(request))
    assert code is INVALID
    assert says in message
    assert await system.listed() == []


BAD_FURTHER = {
    "no puzzle": (further(1, *NO_PUZZLE), "problem 1: '4 5 six 10' is no puzzle"),
    "a gap": (further(2, PUZZLES[0]), "starts at problem 2, but only 1 are there"),
    "an id twice": (further(1, job_pb2.Problem(text="4 5 6 10", id="first")), "two problems have the id 'first'"),
    "too little for all": (further(1, PUZZLES[0], last=True), "tokens_max is 256, but 2 problems"),
    "another request": (pb.CreateJobRequest(request_id="other"), "request_id 'other' is another job's"),
}


@pytest.mark.parametrize("bad", BAD_FURTHER.values(), ids=BAD_FURTHER.keys())
async def test_a_later_message_that_is_refused_undoes_the_upload(system: System, bad: tuple[pb.CreateJobRequest, str]) -> None:
    other = await system.running_job("other job")
    request, says = bad
    upload = system.upload()
    little = spec(budget=BUDGET(tokens_max=256))
    await upload.send(first(spec=little, some=[job_pb2.Problem(text="4 5 6 10", id="first")]))
    code, message = await failure(upload.send(request))
    assert code is INVALID
    assert says in message
    assert await system.listed() == [other]


async def test_an_upload_with_too_little_for_all_is_undone_by_an_empty_end(system: System) -> None:
    upload = system.upload()
    await upload.send(first(spec=spec(budget=BUDGET(tokens_max=256)), some=PUZZLES))
    code, message = await failure(upload.send(further(0, last=True)))
    assert (code, await system.listed()) == (INVALID, [])
    assert "3 problems of at least one step" in message


async def test_no_message_at_all(system: System) -> None:
    upload = system.upload()
    await upload.call.done_writing()
    code, message = await failure(upload.call.read())
    assert code is INVALID
    assert "brought no message" in message


async def test_a_system_without_models_is_not_ready(system: System) -> None:
    await system.jobs.put_models([])
    code, message = await failure(system.upload().send(first(some=PUZZLES)))
    assert code is grpc.StatusCode.UNAVAILABLE
    assert "no models yet" in message
    assert await system.listed() == []


async def test_a_model_that_is_missing(system: System) -> None:
    await system.jobs.put_models([*System.MODELS[:1], System.MODELS[2], System.MODELS[0].__class__("generator", "b", "", "", "")])
    code, message = await failure(system.upload().send(first(spec=job_pb2.JobSpec(verifier="tiny24-prm"))))
    assert (code, message) == (INVALID, "spec.generator is missing; this system has b, tiny24")
    code, message = await failure(system.upload().send(first()))
    assert (code, message) == (INVALID, "spec.verifier is 'tiny24-prm', which is unknown; this system has no verifier")


async def test_a_request_with_another_spec_or_problem_conflicts_and_leaves_the_job(system: System) -> None:
    upload = system.upload()
    await upload.send(first(some=PUZZLES[:2]))
    code, message = await failure(system.upload().send(first(spec=spec(name="other"), some=PUZZLES)))
    assert code is CONFLICT
    assert "with another spec" in message
    code, message = await failure(system.upload().send(first(some=PUZZLES[::-1])))
    assert code is CONFLICT
    assert "problem 0 of job" in message
    answer = await upload.send(further(2, PUZZLES[2], last=True))
    assert answer.job.state == RUNNING
    code, message = await failure(system.upload().send(first(some=[*PUZZLES, *PUZZLES])))
    assert code is CONFLICT
    assert "complete with 3 problems" in message
    assert [job.state for job in await system.listed()] == [RUNNING]


async def test_a_second_call_destroys_no_upload_that_another_is_making(system: System) -> None:
    upload = system.upload()
    await upload.send(first(some=PUZZLES[:2]))
    for requests in (
        [first(some=NO_PUZZLE)],
        [first(), further(2, *NO_PUZZLE)],
        [first(some=PUZZLES[:1]), further(1, *NO_PUZZLE)],
        [first(), further(9, PUZZLES[0])],
    ):
        second = system.upload()
        for request in requests[:-1]:
            await second.send(request)
        code, _ = await failure(second.send(requests[-1]))
        assert code is INVALID
    answer = await upload.send(further(2, PUZZLES[2], last=True))
    assert (answer.job.state, answer.problems_received) == (RUNNING, 3)


async def test_a_bad_chunk_leaves_a_job_that_runs(system: System) -> None:
    job = await system.running_job()
    upload = system.upload()
    await upload.send(first(some=PUZZLES))
    code, _ = await failure(upload.send(further(3, *NO_PUZZLE)))
    assert code is CONFLICT
    assert await system.listed() == [job]


async def test_an_upload_that_another_call_has_undone_says_so(system: System) -> None:
    upload, second = system.upload(), system.upload()
    job = (await upload.send(first(some=PUZZLES[:1]))).job
    await second.send(first(some=PUZZLES[:2]))  # it is further now: the upload is its own
    await failure(second.send(further(2, *NO_PUZZLE)))
    with pytest.raises(JobNotFound):
        await system.jobs.get(job.job_id)
    code, message = await failure(upload.send(further(1, PUZZLES[1])))
    assert code is grpc.StatusCode.ABORTED
    assert "was undone by another call with the same request_id" in message


async def test_an_upload_of_a_cancelled_job_says_so(system: System) -> None:
    upload = system.upload()
    job = (await upload.send(first(some=PUZZLES[:1]))).job
    await system.jobs.cancel(job.job_id)
    code, message = await failure(upload.send(further(1, PUZZLES[1])))
    assert code is grpc.StatusCode.ABORTED
    assert "was cancelled" in message


async def test_a_message_over_the_limit(system: System) -> None:
    upload = system.upload()
    await upload.call.write(first(some=problems("1" * (4 << 20))))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await upload.call.read()
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert await system.listed() == []


async def test_uploads_that_bring_nothing_are_ended_and_can_go_on(tmp_path: Path) -> None:
    limits = GatewayLimits(upload_idle_s=0.05)
    async with running(f"sqlite+aiosqlite:///{tmp_path / 'state.db'}", limits) as system:
        await system.jobs.put_models(System.MODELS)
        code, message = await failure(system.upload().call.read())
        assert code is grpc.StatusCode.UNAVAILABLE
        assert "nothing for 0.05 s: go on with a new call with the same request_id" in message


async def test_more_open_uploads_than_the_gateway_bears(system: System) -> None:
    uploads = [system.upload() for _ in range(3)]
    for index, upload in enumerate(uploads):
        await upload.send(first(f"request {index}"))
    code, message = await failure(system.upload().send(first()))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "holds 3 open uploads" in message
    await uploads[0].end()
    assert (await system.running_job()).state == RUNNING


async def test_a_gateway_that_stops_ends_uploads(system: System) -> None:
    upload = system.upload()
    job = (await upload.send(first(some=PUZZLES[:1]))).job
    await system.gateway.stop(60)
    code, message = await failure(upload.call.read())
    assert code is grpc.StatusCode.UNAVAILABLE
    assert "stopping: go on with a new call" in message
    assert [each.job_id for each in await system.listed()] == [job.job_id]


async def test_a_store_that_does_not_answer_is_unavailable_and_says_nothing_of_itself(
    system: System, caplog: pytest.LogCaptureFixture
) -> None:
    async with system.database.write() as connection:
        await connection.execute(text("ALTER TABLE jobs RENAME TO gone"))
    code, message = await failure(system.stub.GetJob(pb.GetJobRequest(job_id="x")))
    assert (code, message) == (
        grpc.StatusCode.UNAVAILABLE,
        "the store does not answer: try again; the gateway's log says more",
    )
    assert re.search('no such table: jobs|relation "jobs" does not exist', caplog.text)
