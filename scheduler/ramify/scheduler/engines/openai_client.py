"""HTTP to a server with OpenAI's completions API: retries, Retry-After, a circuit breaker, and whose fault a failure is."""

import asyncio
import logging
import os
import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from ssl import SSLContext
from typing import Any

import httpx
import tenacity
from pydantic import BaseModel, Field, ValidationError

from ramify.scheduler.engines.circuit import Circuit, State
from ramify.scheduler.errors import EngineAway, EngineError

if (httpx_log := logging.getLogger("httpx")).level == logging.NOTSET:
    httpx_log.setLevel(logging.WARNING)  # or else it tells of every request

CONNECT_S = 10.0  # to reach the server, or to hear what models it has
MESSAGE_CHARS_MAX = 300  # of what a server says
WAIT_S = 0.5  # before the first retry, at most; twice as long before each that follows
WAIT_S_MAX = 20.0
REFUSALS = (400, 413, 422)  # of one request, for what is in it
TOO_MANY = 429
BROKEN_OFF = (None, "abort", "error")  # reasons of an end that have nothing to do with what was asked for
_TOO_LONG = re.compile(
    r"context.?(length|window|size)|context_length_exceeded|maximum (input|model|sequence|prompt)? ?length"
    r"|(prompt|input)[^.]{0,60}(too long|longer than|exceeds)|too many (input )?tokens|`inputs` tokens \+",
    re.IGNORECASE,
)


class TopLogprobs(BaseModel):
    """What a server says of the likelihood of what it sampled."""

    token_logprobs: list[float | None] | None = None


class Choice(BaseModel):
    """A continuation. What comes beyond OpenAI's fields is of vLLM and SGLang."""

    text: str
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    matched_stop: int | str | None = None
    token_ids: list[int] | None = None
    logprobs: TopLogprobs | None = None


class PromptDetails(BaseModel):
    """Where a prompt's tokens came from."""

    cached_tokens: int | None = None


class Usage(BaseModel):
    """What a request took."""

    prompt_tokens: int = 0
    completion_tokens: int | None = None
    prompt_tokens_details: PromptDetails | None = None


class Completion(BaseModel):
    """An answer of `/completions`."""

    choices: list[Choice] = Field(min_length=1)
    usage: Usage | None = None


class Model(BaseModel):
    """An entry of `/models`: what of it says which weights are served."""

    id: str
    root: str | None = None
    parent: str | None = None
    owned_by: str | None = None
    max_model_len: int | None = None


class Models(BaseModel):
    """An answer of `/models`."""

    data: list[Model]


class Refused(Exception):
    """The server refuses one request for what is in it; another may do.

    Attributes:
        too_long: whether its prompt is longer than the model's context.
    """

    def __init__(self, message: str, *, too_long: bool) -> None:
        super().__init__(message)
        self.too_long = too_long


class RowFailed(Exception):
    """One request failed in all its attempts, while the server served others."""


class _Failed(Exception):
    """One attempt failed; another may succeed."""

    def __init__(self, message: str, retry_after_s: float | None = None, *, overloaded: bool = False) -> None:
        super().__init__(message)
        self.retry_after_s, self.overloaded = retry_after_s, overloaded


@dataclass(frozen=True, slots=True)
class Limits:
    """How patient a client is."""

    connections: int
    timeout_s: float  # of one attempt
    attempts_max: int
    retry_s: float  # of all attempts of a request
    failures_max: int  # see `Circuit`
    open_s: float


class Endpoint:
    """Where a server is and how to speak to it. Its key is in no repr, message or log.

    Raises:
        EngineError: the URL is none, or holds a password.
    """

    def __init__(self, base_url: str, api_key_env: str) -> None:
        try:
            parsed = httpx.URL(base_url.rstrip("/"))
        except httpx.InvalidURL as error:
            raise EngineError(f"{base_url!r} is no URL: {error}") from error
        if parsed.userinfo:
            raise EngineError(
                "the URL of an openai engine holds a password: put the key into an environment variable (api_key_env)"
            )
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise EngineError(f"{base_url!r} is no URL of an OpenAI server; one is http://host:8000/v1")
        self.url, self._key_env, self._key = str(parsed), api_key_env, os.environ.get(api_key_env, "").strip()

    def __repr__(self) -> str:
        return self.url

    @property
    def headers(self) -> dict[str, str]:
        """What makes a request ours."""
        return {"Authorization": f"Bearer {self._key}"} if self._key else {}

    def hide(self, text: str) -> str:
        """A text to be shown, short and without the key."""
        shown = text.replace(self._key, "***") if self._key else text
        return shown if len(shown) <= MESSAGE_CHARS_MAX else f"{shown[:MESSAGE_CHARS_MAX]}..."

    def refuses_us(self, status: int, message: str) -> str:
        """What to do about a status that no request of ours would escape."""
        hint = f" (the key is taken from the environment variable {self._key_env})" if status in (401, 403) else ""
        return f"{self.url} answers {status}{hint}: {message}"

    def models(self) -> list[Model] | None:
        """Ask what models there are, blocking; None: the server has no such route.

        Raises:
            EngineAway: there is no answer, or none that can be read.
        """
        try:
            with httpx.Client(timeout=CONNECT_S, verify=_trust()) as client:
                response = client.get(f"{self.url}/models", headers=self.headers)
        except httpx.HTTPError as error:
            raise EngineAway(f"{self.url} can't be reached: {_told(error)}") from error
        if response.status_code in (404, 405, 501):
            return None
        if response.status_code != 200:
            raise EngineAway(self.refuses_us(response.status_code, self.hide(_message(response))))
        try:
            return Models.model_validate_json(response.content).data
        except ValidationError as error:
            raise EngineAway(f"{self.url}/models does not list models as OpenAI does: {self.hide(response.text)!r}") from error


class CompletionsClient:
    """Requests to one server, each retried within limits. Of one event loop.

    Attributes:
        circuit: open while the server is thought to be away.
    """

    def __init__(self, endpoint: Endpoint, limits: Limits) -> None:
        self._endpoint, self._limits = endpoint, limits
        self.circuit = Circuit(limits.failures_max, limits.open_s)
        self._why = ""  # the circuit was opened
        self._held_until_s = 0.0  # no request is sent earlier: the server asked for it
        self._http = httpx.AsyncClient(
            headers=endpoint.headers,
            limits=httpx.Limits(max_connections=limits.connections + 1, max_keepalive_connections=limits.connections + 1),
            timeout=httpx.Timeout(None, connect=CONNECT_S),  # an attempt has one limit for all of it
            verify=_trust(),
        )

    async def complete(self, body: dict[str, Any]) -> Completion:
        """Ask for one continuation.

        Raises:
            Refused: what is asked for is refused.
            RowFailed: all attempts failed, others' did not.
            EngineAway: the server is away; the circuit is open then.
        """
        successes = self.circuit.successes
        try:
            async for attempt in tenacity.AsyncRetrying(
                retry=tenacity.retry_if_exception_type(_Failed),
                stop=tenacity.stop_after_attempt(self._limits.attempts_max) | tenacity.stop_before_delay(self._limits.retry_s),
                wait=_wait_s,
                reraise=True,
            ):
                with attempt:
                    return await self._attempt(body)
        except _Failed as failure:
            message = self._endpoint.hide(f"{self._endpoint.url} fails: {failure}")
            if self.circuit.successes > successes and not failure.overloaded:
                raise RowFailed(message) from failure
            raise self._away(message) from failure
        raise AssertionError("a retry ends with an answer or an error")

    async def probe(self) -> None:
        """See whether the server answers at all.

        Raises:
            EngineAway: it does not, or the circuit is open.
        """
        if self.circuit.state is State.OPEN:
            raise EngineAway(f"{self._why}; it is left alone for {self.circuit.retry_after_s:.1f} s more")
        if (held_s := self._held_until_s - time.monotonic()) > 0:
            raise EngineAway(f"{self._endpoint.url} asks us to wait for {held_s:.1f} s more")
        try:
            async with asyncio.timeout(CONNECT_S):
                response = await self._http.get(f"{self._endpoint.url}/models")
        except (httpx.HTTPError, TimeoutError) as error:
            raise self._away(f"{self._endpoint.url} can't be reached: {_told(error)}") from error
        if response.status_code in (401, 403, TOO_MANY) or response.status_code >= 500:
            raise self._away(self._endpoint.refuses_us(response.status_code, self._endpoint.hide(_message(response))))

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def _attempt(self, body: dict[str, Any]) -> Completion:
        if (held_s := self._held_until_s - time.monotonic()) > 0:
            await asyncio.sleep(held_s)
        try:
            async with asyncio.timeout(self._limits.timeout_s):
                response = await self._http.post(f"{self._endpoint.url}/completions", json=body)
        except TimeoutError as error:
            raise self._failure(f"no answer within {self._limits.timeout_s:g} s") from error
        except httpx.HTTPError as error:
            raise self._failure(_told(error)) from error
        if response.status_code == 200:
            try:
                completion = Completion.model_validate_json(response.content)
            except ValidationError as error:
                raise self._failure(f"its answer is no completion: {response.text[:100]!r}") from error
            if (reason := completion.choices[0].finish_reason) in BROKEN_OFF:
                raise self._failure(f"it broke a step off: finish_reason is {reason}")
            self.circuit.succeeded()
            return completion
        message = self._endpoint.hide(_message(response))
        if response.status_code in REFUSALS:
            self.circuit.succeeded()
            raise Refused(message, too_long=response.status_code == 413 or bool(_TOO_LONG.search(message)))
        if response.status_code == TOO_MANY or response.status_code == 408 or response.status_code >= 500:
            raise self._rejected(response, message)
        # A key that is not good, a path or model that is not there: the next request fares no better.
        raise self._away(self._endpoint.refuses_us(response.status_code, message))

    def _rejected(self, response: httpx.Response, message: str) -> Exception:
        retry_after_s = _retry_after_s(response)
        if retry_after_s is not None:
            self._held_until_s = max(self._held_until_s, time.monotonic() + min(retry_after_s, self._limits.retry_s))
        told = f"{response.status_code} {message}"
        if response.status_code == TOO_MANY:  # it is there, and only wants less
            return _Failed(told, retry_after_s, overloaded=True)
        return self._failure(told, retry_after_s)

    def _failure(self, message: str, retry_after_s: float | None = None) -> Exception:
        """Count a failure; the error that says so."""
        self.circuit.failed()
        if self.circuit.state is State.CLOSED:
            return _Failed(message, retry_after_s)
        return self._away(self._endpoint.hide(f"{self._endpoint.url} fails: {message}"))

    def _away(self, message: str) -> EngineAway:
        """Leave the server alone for a while; the error that says why."""
        self.circuit.open()
        self._why = message
        return EngineAway(message)


def _wait_s(state: tenacity.RetryCallState) -> float:
    """Jitter that grows, after what the server asks for."""
    failure = state.outcome.exception() if state.outcome is not None else None
    asked_s = failure.retry_after_s if isinstance(failure, _Failed) and failure.retry_after_s else 0.0
    return asked_s + tenacity.wait_random_exponential(multiplier=WAIT_S, max=WAIT_S_MAX)(state)


def _retry_after_s(response: httpx.Response) -> float | None:
    """Seconds that a server asks us to wait, as a number or a date."""
    asked = response.headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d+(\.\d+)?", asked):
        return float(asked)
    try:
        until = parsedate_to_datetime(asked)
    except ValueError:
        return None
    return max(0.0, ((until if until.tzinfo else until.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds())


def _message(response: httpx.Response) -> str:
    """What an error says: OpenAI's and vLLM's `error.message`, SGLang's `message`, FastAPI's `detail`, or all of it."""
    try:
        body = response.json()
    except ValueError:
        return response.text.strip() or response.reason_phrase
    if not isinstance(body, dict):
        return response.text
    error = body.get("error")
    found = error.get("message") if isinstance(error, dict) else error
    return str(found or body.get("message") or body.get("detail") or response.text)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


@cache
def _trust() -> SSLContext:
    """The certificates that are trusted: reading them takes longer than a request."""
    return httpx.create_ssl_context()
