"""The upload of a job's problems as a conversation apart from the wire, which both clients carry out."""

import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Mapping

from ramify.client.errors import InvalidRequest, ServerError
from ramify.v1 import job_pb2, job_service_pb2

#: Problems in one message.
CHUNK_PROBLEMS_MAX = 1_000

#: Bytes of problems in one message; also the most that a single problem may have.
CHUNK_BYTES_MAX = 1 << 20

#: Messages on their way without an acknowledgement, kept so that they can be sent again.
WINDOW_CHUNKS = 8

# Tag and length that a problem adds to its message.
_FIELD_BYTES = 6

#: What `submit` takes for a problem.
ProblemLike = job_pb2.Problem | str | Mapping[str, str]

_PROBLEM_FIELDS = tuple(job_pb2.Problem.DESCRIPTOR.fields_by_name)


class Upload:
    """What to send next, and what the answers mean.

    Holds at most `window_chunks` messages, however many problems there are.
    """

    def __init__(
        self,
        problems: Iterable[ProblemLike],
        spec: job_pb2.JobSpec,
        request_id: str | None,
        *,
        window_chunks: int = WINDOW_CHUNKS,
    ) -> None:
        self.request_id = str(uuid.uuid4()) if request_id is None else request_id
        #: The job as of the last acknowledgement.
        self.job = job_pb2.Job()
        #: Every problem is durable and the job started.
        self.done = False
        #: Problems acknowledged.
        self.problems_received = 0
        self._spec = spec
        self._window_chunks = window_chunks
        self._chunks = _chunks(problems)
        self._unacknowledged: deque[job_service_pb2.CreateJobRequest] = deque()
        self._sent = 0
        self._first_of_call = True

    def next_request(self) -> job_service_pb2.CreateJobRequest | None:
        """The next message of this call; None while the window is full or once everything is sent."""
        if self._sent == len(self._unacknowledged):
            chunk = next(self._chunks, None) if self._sent < self._window_chunks else None
            if chunk is None:
                return None
            self._unacknowledged.append(chunk)
        request = self._unacknowledged[self._sent]
        self._sent += 1
        if self._first_of_call:
            self._first_of_call = False
            request.request_id = self.request_id
            request.spec.CopyFrom(self._spec)
        return request

    def acknowledge(self, response: job_service_pb2.CreateJobResponse | None) -> None:
        """Takes the answer to the oldest open message; None if the gateway ended the call without one.

        Raises:
            ServerError: the answer breaks the protocol.
        """
        if response is None:
            raise ServerError("the gateway ended the upload before it acknowledged everything")
        request = self._unacknowledged.popleft()
        self._sent -= 1
        received = request.offset + len(request.problems)
        if response.problems_received < received:
            raise ServerError(f"the gateway acknowledged {response.problems_received:,} problems where {received:,} were sent")
        self.job = response.job
        self.problems_received = received
        self.done = request.last

    def rewind(self) -> None:
        """The call broke: the next one begins with the oldest message that wasn't acknowledged."""
        self._sent = 0
        self._first_of_call = True


def as_problem(item: ProblemLike, index: int) -> job_pb2.Problem:
    """A problem from what users have at hand: a message, its text, or a mapping with the message's fields.

    Raises:
        InvalidRequest: it is none of these; names the problem by its index.
    """
    try:
        if isinstance(item, job_pb2.Problem):
            return item
        if isinstance(item, str):
            return job_pb2.Problem(text=item)
        if isinstance(item, Mapping):
            unknown = [key for key in item if key not in _PROBLEM_FIELDS]
            if not unknown:
                return job_pb2.Problem(**item)
            raise InvalidRequest(
                f"problem {index} has the unknown field {unknown[0]!r}; it can have {', '.join(_PROBLEM_FIELDS)}"
            )
    except (TypeError, ValueError) as error:  # not text, or text with half a surrogate pair
        raise InvalidRequest(f"problem {index}: {error}") from error
    raise InvalidRequest(f"problem {index} is a {type(item).__name__}; give a Problem, a text or a mapping")


def _chunks(problems: Iterable[ProblemLike]) -> Iterator[job_service_pb2.CreateJobRequest]:
    chunk = job_service_pb2.CreateJobRequest()
    chunk_bytes = 0
    for index, item in enumerate(problems):
        problem = as_problem(item, index)
        problem_bytes = problem.ByteSize() + _FIELD_BYTES
        if problem_bytes > CHUNK_BYTES_MAX:
            raise InvalidRequest(f"problem {index} has {problem_bytes:,} bytes; at most {CHUNK_BYTES_MAX:,} are sent")
        if len(chunk.problems) == CHUNK_PROBLEMS_MAX or chunk_bytes + problem_bytes > CHUNK_BYTES_MAX:
            yield chunk
            chunk = job_service_pb2.CreateJobRequest(offset=index)
            chunk_bytes = 0
        chunk.problems.append(problem)
        chunk_bytes += problem_bytes
    chunk.last = True
    yield chunk
