from sqlalchemy import update

from ramify.cli.doctor import upkeep, work
from ramify.cli.doctor.counters import counters
from ramify.cli.doctor.findings import Level
from ramify.cli.doctor.subject import Subject
from ramify.store.jobs import Jobs, ModelRow
from ramify.store.schema import events, jobs, segments, slots
from ramify.v1 import job_pb2
from tests.unit.doctor.defects import a_job, deep, execute, spoil
from tests.unit.store.helpers import running_job

MODELS = [ModelRow("generator", "tiny24", "1", "\n", "")]


async def test_a_job_that_does_not_move(subject: Subject) -> None:
    assert (await work.jobs_move(subject)).summary == "no job runs"
    job = await running_job(subject.database)
    assert (await work.jobs_move(subject)).level is Level.OK
    old = job_pb2.JobEvent(cursor=1)
    old.time.FromMilliseconds(job.start_time.ToMilliseconds() - 720_000)
    await execute(subject.database, update(events).values(body=old.SerializeToString()))
    finding = await work.jobs_move(subject)
    assert finding.level is Level.WARN
    assert finding.details == (f"job {job.job_id}: nothing for 12 min, 0 of 2 problems done",)
    other = await running_job(subject.database, request_id="another")
    queued = await work.jobs_move(subject)
    assert (queued.level, queued.summary) == (Level.OK, "1 of 2 running jobs move, 1 wait for their turn")
    await execute(subject.database, update(jobs).values(steps=5))
    assert (await work.jobs_move(subject)).level is Level.WARN
    for each in (job, other):
        await Jobs(subject.database).cancel(each.job_id)
    assert (await work.jobs_move(subject)).summary == "no job runs"


async def test_models_that_running_jobs_lack(subject: Subject) -> None:
    assert (await work.pins(subject)).level is Level.OK
    job = await running_job(subject.database)
    assert (await work.pins(subject)).summary == "no scheduler has started on this store yet"
    await Jobs(subject.database).put_models(MODELS)
    assert (await work.pins(subject)).summary == "tiny24 (generator)"
    await execute(subject.database, update(jobs).values(pin_generator="0"))
    pinned = await work.pins(subject)
    assert (pinned.level, pinned.details) == (
        Level.BAD,
        (f"job {job.job_id}: its generator tiny24 is pinned to 0, and the system has 1",),
    )
    await Jobs(subject.database).put_models([ModelRow("generator", "other", "1", "\n", "")])
    gone = await work.pins(subject)
    assert gone.details == (f"job {job.job_id}: its generator tiny24 is none of the system's",)


async def test_models_that_a_job_of_several_lacks(subject: Subject) -> None:
    job = await running_job(subject.database)
    spec = job_pb2.JobSpec(generators=[job_pb2.Generator(model=name) for name in ("a", "b", "c")])
    await execute(subject.database, update(jobs).values(spec=spec.SerializeToString()))
    await Jobs(subject.database).put_models([ModelRow("generator", name, f"{name}1", "\n", "") for name in ("a", "b")])
    assert (await work.pins(subject)).details == (f"job {job.job_id}: its generator c is none of the system's",)
    await execute(subject.database, update(jobs).values(pin_generator="a1,b0,c1"))
    assert (await work.pins(subject)).details == (
        f"job {job.job_id}: its generator b is pinned to b0, and the system has b1",
        f"job {job.job_id}: its generator c is none of the system's",
    )


async def test_verifiers_that_a_job_of_several_lacks(subject: Subject) -> None:
    job = await running_job(subject.database)
    spec = job_pb2.JobSpec(generator="g", verifiers=[job_pb2.Verifier(model=name) for name in ("a", "b")])
    await execute(subject.database, update(jobs).values(spec=spec.SerializeToString(), pin_verifier="a0,b1"))
    known = [ModelRow("verifier", "a", "a1", "", ""), ModelRow("generator", "g", "1", "\n", "")]
    await Jobs(subject.database).put_models(known)
    assert (await work.pins(subject)).details == (
        f"job {job.job_id}: its verifier a is pinned to a0, and the system has a1",
        f"job {job.job_id}: its verifier b is none of the system's",
    )


async def test_segments_that_nobody_has_freed(subject: Subject) -> None:
    await a_job(subject.database)
    assert (await upkeep.freeable(subject)).summary == "2 segments, none of them to be freed"
    await execute(subject.database, update(slots).values(floor=2))
    fresh = await upkeep.freeable(subject)
    assert (fresh.level, fresh.summary.startswith("1 of 2 segments (")) == (Level.OK, True)
    await execute(subject.database, update(segments).values(created_ms=segments.c.created_ms - 2 * 3600 * 1000))
    old = await upkeep.freeable(subject)
    assert old.level is Level.WARN
    assert old.summary.endswith("could be freed, the oldest from 2 h ago")


async def test_counters_that_agree(subject: Subject) -> None:
    assert (await counters(deep(subject))).level is Level.OK
    await a_job(subject.database)
    finding = await counters(deep(subject))
    assert (finding.level, finding.summary) == (Level.OK, "those of 1 job agree with what is stored")


async def test_counters_that_do_not(subject: Subject) -> None:
    job = await a_job(subject.database)
    wrong = {"problems_done": 2, "problems_solved": 0, "steps": jobs.c.steps + 1}
    await execute(subject.database, update(jobs).values(wrong))
    finding = await counters(deep(subject))
    assert (finding.level, finding.details) == (
        Level.BAD,
        (
            f"job {job.job_id}: problems_done is 2, and 1 are stored",
            f"job {job.job_id}: problems_solved is 0, and 1 are stored",
            f"job {job.job_id}: it counts 4 steps with 3 tokens, and 3 with 3 are stored",
        ),
    )


async def test_steps_that_were_lost_had_been_paid_for(subject: Subject) -> None:
    await a_job(subject.database)
    await spoil(subject.database, segments.c.nodes, segments.c.segment_id == 2)
    assert (await counters(deep(subject))).level is Level.OK
    await execute(subject.database, update(jobs).values(steps=0))
    assert (await counters(deep(subject))).level is Level.BAD


async def test_a_job_that_is_done_without_all_results(subject: Subject) -> None:
    job = await a_job(subject.database)
    await execute(subject.database, update(jobs).values(state=job_pb2.JOB_STATE_DONE))
    finding = await counters(deep(subject))
    assert finding.details == (f"job {job.job_id}: it is done, with 1 results for 3 problems",)


async def test_a_history_without_an_end_is_no_trouble(subject: Subject) -> None:
    await running_job(subject.database)
    await execute(subject.database, update(jobs).values(cursor=5))
    assert (await work.jobs_move(subject)).details[0].endswith("nothing ever, 0 of 2 problems done")
