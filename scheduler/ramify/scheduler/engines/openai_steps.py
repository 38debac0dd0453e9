"""Steps as a completions server takes and gives them: prompts of chains, and what an answer says in our terms."""

import hashlib
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ramify.scheduler.engines.base import Finish, StepParams
from ramify.scheduler.engines.openai_client import Choice, Completion
from ramify.scheduler.engines.text import UNKNOWN, step_text
from ramify.scheduler.errors import EngineError

BYTES = 256  # vocabulary without a tokenizer: one token a byte
LOGPROB_MIN = -9999.0  # what vLLM gives for an infinite one
_CONTEXT_TOKENS = 4  # left of a step that is put into tokens anew, so that no tokenizer sees the start of a text there
_ANCHORS = (
    "\n",
    ".",
    "a",
    "1",
)  # what a text may be put after to see its tokens, where it melts with what it really stands after
_STEP_REASONS, _END_REASONS = ("stop_sequence",), ("eos_token",)  # how Text Generation Inference names what others call "stop"

I32 = NDArray[np.int32]


class Step(NamedTuple):
    """One row of `StepResults`."""

    finish: Finish
    logprob: float
    cost: int
    tokens: I32
    text: bytes


class UnknownEnd(Exception):
    """The server ended a step for a reason that is none of ours."""


class Codec:
    """Tokens and text of a model. Without a tokenizer a token is a byte of UTF-8, and everything goes as text.

    Args:
        tokenizer: `tokenizer.json` in the format of Hugging Face tokenizers, or a folder that holds it; None: bytes.

    Raises:
        EngineError: there is no such file, or it is no tokenizer.
    """

    def __init__(self, tokenizer: Path | None) -> None:
        self.tokenizer: Tokenizer | None = None
        self.tokenizer_json, self.vocabulary = "", BYTES
        if tokenizer is None:
            return
        file = tokenizer / "tokenizer.json" if tokenizer.is_dir() else tokenizer
        try:
            self.tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises nothing narrower
            raise EngineError(f"{file} is no tokenizer in the format of Hugging Face tokenizers: {error}") from error
        self.tokenizer.no_truncation()
        self.tokenizer_json = self.tokenizer.to_str()
        self.vocabulary = 1 + max(self.tokenizer.get_vocab(with_added_tokens=True).values())

    @property
    def digest(self) -> str:
        """Hash of the tokenizer; empty without one."""
        return hashlib.blake2b(self.tokenizer_json.encode(), digest_size=16).hexdigest() if self.tokenizer_json else ""

    def prompt(self, chain: I32, *, as_tokens: bool) -> list[int] | str:
        """A chain as the `prompt` of a request."""
        if as_tokens:
            return [int(token) for token in chain.tolist()]
        if self.tokenizer is None:
            return bytes(chain.tolist()).decode("utf-8", "replace")
        decoded: str = self.tokenizer.decode(chain.tolist(), skip_special_tokens=False)
        return decoded

    def step(self, chain: I32, text: str, ids: list[int] | None, *, ended: bool = False) -> tuple[I32, bytes]:
        """The tokens and the text of a step, which say the same.

        Tokens are the sampled ones where the server tells them. The last of them may say more than the text, which ends
        with the delimiter: then the step is what the tokens say, since a chain that goes on after other tokens than
        were sampled is not what the model would have written. Otherwise the text is put into tokens anew.

        Args:
            chain: what the step continues.
            text: what it says.
            ids: the tokens as sampled, if the server tells them.
            ended: whether the chain ends with the step.
        """
        if self.tokenizer is None:
            return np.frombuffer(text.encode(), np.uint8).astype(np.int32), text.encode()
        if ids is not None and all(0 <= token < self.vocabulary for token in ids):
            tokens = np.array(ids, np.int32)
            said = step_text(self.tokenizer, np.concatenate([chain, tokens]), len(chain), ended=ended)
            if text.strip(UNKNOWN) in said.decode():  # of characters that are cut, servers tell this or that
                return tokens, said
        if not ended:
            text = text.rstrip(UNKNOWN)  # the chain goes on before the character that was cut
        return self._encode(chain, text), text.encode()

    def is_silent(self, token: int) -> bool:
        """Whether a token says nothing, as those that end a sequence do."""
        return self.tokenizer is not None and not self.tokenizer.decode([token])

    def _encode(self, chain: I32, text: str) -> I32:
        """A text into tokens, as it stands after a chain."""
        if self.tokenizer is None or not text:
            return np.empty(0, np.int32)
        before = self.tokenizer.decode(chain[-_CONTEXT_TOKENS:].tolist(), skip_special_tokens=False)
        for anchor in (before, *_ANCHORS):
            encoded = self.tokenizer.encode(anchor + text, add_special_tokens=False)
            starts = [start for start, _ in encoded.offsets]
            if len(anchor) not in starts:  # a token says the end of the one and the beginning of the other
                continue
            ids = np.array(encoded.ids[starts.index(len(anchor)) :], np.int32)
            if step_text(self.tokenizer, np.concatenate([chain, ids]), len(chain), ended=True) == text.encode():
                return ids
        return np.array(self.tokenizer.encode(text, add_special_tokens=False).ids, np.int32)


def read_step(codec: Codec, chain: I32, params: StepParams, room: int, answer: Completion) -> Step:
    """What an answer says.

    Args:
        codec: of the model.
        chain: what was to be continued.
        params: how.
        room: tokens that the model's context has left after the chain.
        answer: of the server, asked for one continuation.

    Raises:
        UnknownEnd: the server ended the step for a reason that is none of ours, e.g. a filter.
    """
    choice = answer.choices[0]
    text, ids = choice.text.encode("utf-8", "replace").decode(), choice.token_ids  # half a surrogate pair is no text
    finish = _finish(choice, params, room)
    if finish is Finish.STEP and params.delimiter is not None and not text.endswith(params.delimiter):
        text += params.delimiter  # most servers leave it out
    if finish is Finish.END and ids and (ids[-1] == choice.stop_reason or codec.is_silent(ids[-1])):
        ids = ids[:-1]
    tokens, said = codec.step(chain, text, ids, ended=finish in (Finish.END, Finish.CONTEXT))
    if finish is Finish.STEP_CUT and len(tokens) >= room:
        finish = Finish.CONTEXT
    cost = answer.usage.completion_tokens if answer.usage is not None else None
    return Step(
        finish=finish,
        logprob=_logprob(choice),
        cost=len(tokens) + (finish is Finish.END) if cost is None else cost,
        tokens=tokens,
        text=said,
    )


def _finish(choice: Choice, params: StepParams, room: int) -> Finish:
    reason = choice.finish_reason
    if reason == "length":
        return Finish.CONTEXT if room <= params.max_step_tokens else Finish.STEP_CUT
    if params.delimiter is None or reason in _END_REASONS:
        return Finish.END
    if reason in _STEP_REASONS:
        return Finish.STEP
    if reason != "stop":
        raise UnknownEnd(f"the server ended the step for the reason {reason!r}")
    if choice.text.endswith(params.delimiter):
        return Finish.STEP
    for name in ("stop_reason", "matched_stop"):  # vLLM and SGLang say what they stopped at
        if name in choice.model_fields_set:
            return Finish.STEP if getattr(choice, name) == params.delimiter else Finish.END
    # It was the delimiter or the chain's end, and the server doesn't say which. A step that says nothing is no step: the chain
    # ends there at the latest, one short request after its end.
    return Finish.STEP if choice.text else Finish.END


def _logprob(choice: Choice) -> float:
    """The sum over all tokens; 0 where the server tells none: all siblings are as likely then."""
    each = [] if choice.logprobs is None else choice.logprobs.token_logprobs or []
    total = sum(value for value in each if value is not None)
    return min(0.0, total) if math.isfinite(total) else LOGPROB_MIN
