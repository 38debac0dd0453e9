"""A system with verifiers of its own elsewhere: two of them, which let in only whom they know, and are killed."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import trustme

from ramify.client import Client
from ramify.local.child import Child
from ramify.v1 import job_pb2
from tests.e2e.conftest import MODELS, Up
from tests.e2e.test_system import KNOBS, run_job, trees

PUZZLES = 48
SEED = 11
STEPS_BEFORE = 20  # a verifier is killed


@dataclass(slots=True)
class House:
    """The system, and its verifiers."""

    up: Up
    verifiers: list[Child]
    calm: list[bytes]  # the trees of a job that nothing disturbs


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, puzzles: list[str]) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("verifiers")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    authority.issue_cert("127.0.0.1", "scheduler").private_key_and_cert_chain_pem.write_to_path(str(folder / "pair.pem"))
    ca, pair = str(folder / "ca.pem"), str(folder / "pair.pem")
    flags = ["--model", f"tiny24-prm={MODELS / 'prm'}", "--rule", "countdown"]
    flags += ["--tls-cert", pair, "--tls-key", pair, "--tls-client-ca", ca]
    verifiers = []
    for name in ("one", "other"):
        (folder / name).mkdir()
        verifiers.append(Child("ramify.verifier", flags, "127.0.0.1:0", folder / name))
    try:
        for verifier in verifiers:
            verifier.start()
        for verifier in verifiers:
            verifier.wait_ready()
        named = ",".join(verifier.address for verifier in verifiers)
        tls = ("--verifier-ca", ca, "--verifier-cert", pair, "--verifier-key", pair)
        up = Up(folder / "system", "--verifier", named, *tls)
        with Client(up.address) as client:
            calm = trees(client, run_job(client, puzzles[:PUZZLES], seed=SEED).job_id, PUZZLES)
        yield House(up, verifiers, calm)
        assert up.stop() == (0, []), up.said
    finally:
        for verifier in verifiers:
            verifier.stop()


def test_one_verifier_is_killed_and_the_other_goes_on(house: House, puzzles: list[str]) -> None:
    """What the one held is sent to the other whole; no score changes, and nothing is lost that would be tried again."""
    victim = house.verifiers[0]
    job = killing(house, puzzles, [victim], revived=False)
    assert job.progress.retries == 0
    assert victim.revive()
    victim.wait_ready()


def test_all_verifiers_are_killed_and_come_back_with_nothing_in_their_memories(house: House, puzzles: list[str]) -> None:
    killing(house, puzzles, house.verifiers, revived=True)


def killing(house: House, puzzles: list[str], victims: list[Child], *, revived: bool) -> job_pb2.Job:
    """SIGKILL verifiers in the middle of a job; it ends with the trees, and the scores, of a calm one."""
    with Client(house.up.address) as client:
        job = client.submit(puzzles[:PUZZLES], **KNOBS, seed=SEED)  # type: ignore[arg-type]
        killed = False
        for event in client.watch(job.job_id):
            if not killed and event.progress.steps > STEPS_BEFORE:
                assert event.progress.problems_done < PUZZLES
                for victim in victims:
                    assert victim.process is not None
                    victim.process.kill()
                    victim.process.wait()
                for victim in victims if revived else []:
                    assert victim.revive()
                killed = True
        assert killed
        assert trees(client, job.job_id, PUZZLES) == house.calm
        return client.job(job.job_id)
