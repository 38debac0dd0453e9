"""A process reward model on ONNX Runtime: a Hugging Face Llama folder with `model.onnx` and past key values.

Convention: the text is the problem, a newline, and the steps, each ended by a newline. The score of a step is P(+)
against P(-), the softmax over the logits of those two tokens, at the newline that ends the step. A causal model
gives all steps' scores in one pass.

Scores are bitwise the same whatever else is in the batch. A row of a matrix product may differ in its last bits with
the product's shape, so a row's length depends on its own chain alone (`TOKENS_BUCKET`), and a call never has one row
(`ROWS_MIN`), for which a CPU may have another kernel than for many.

Shapes: B rows, T tokens of a row, P past tokens (none here), V vocabulary, H heads of D.
"""

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnxruntime as ort
from tokenizers import Tokenizer

from ramify.verifier.backends.base import ChainScorer
from ramify.verifier.chains import NO_STEP, Chain, ChainError, ChainScores
from ramify.verifier.errors import StartupError

DELIMITER = "\n"
FILES = ("config.json", "model.onnx", "tokenizer.json")

TOKENS_BUCKET = 16
ROWS_MIN, ROWS_MAX = 2, 64

# Pieces of text (problems and steps) whose tokens are kept: a growing chain is sent again with each new step.
_PIECES_KEPT = 1 << 16


@dataclass(frozen=True, slots=True)
class _Row:
    """A chain as tokens, and the positions of the newlines that end its steps."""

    tokens: list[int]
    ends: list[int]


class OnnxScorer(ChainScorer):
    """See the module.

    Args:
        name: Its name in requests.
        folder: Holds `FILES`, and `model.onnx.data` if the weights are apart.
        threads: Threads of one matrix product.

    Raises:
        StartupError: the folder lacks files, or they are not such a model.
    """

    backend = "onnx"
    batch_tokens_max = 8_192
    batch_wait_ms_max = 2.0

    def __init__(self, name: str, folder: Path, *, threads: int = 1) -> None:
        self.name = name
        missing = [file for file in FILES if not (folder / file).is_file()]
        if missing:
            raise StartupError(f"model '{name}': the folder '{folder}' lacks {', '.join(missing)}")
        try:
            self.revision = _content_hash(folder)
            self.context_tokens_max = int(json.loads((folder / "config.json").read_text())["max_position_embeddings"])
            self._tokenizer = _open_tokenizer(folder)
            self._session = _open_session(folder / "model.onnx", threads)
            self._no_past = _no_past(self._session)
            self._plus, self._minus, _ = (self._token_id(text) for text in ("+", "-", DELIMITER))
            self._unknown: int | None = self._tokenizer.token_to_id(_unknown_token(folder))
            self._encode = lru_cache(maxsize=_PIECES_KEPT)(self._encode_piece)
            self._run([_Row([self._plus], [0])])  # warms up: the first call allocates
        except Exception as error:  # ONNX Runtime and tokenizers raise classes of their own, or bare Exception
            raise StartupError(f"model '{name}': cannot load the folder '{folder}': {error}") from error

    def score(self, chains: Sequence[Chain]) -> list[ChainScores]:
        """See `ChainScorer`."""
        found: list[ChainScores | None] = []
        rows: dict[int, list[tuple[int, _Row]]] = defaultdict(list)
        for index, chain in enumerate(chains):
            row = self._read(chain)
            if isinstance(row, _Row):
                found.append(None)
                rows[self._bucket(len(row.tokens))].append((index, row))
            else:
                found.append(row)
        for members in rows.values():
            for start in range(0, len(members), ROWS_MAX):
                part = members[start : start + ROWS_MAX]
                for (index, _), scores in zip(part, self._run([row for _, row in part]), strict=True):
                    found[index] = scores
        return [scores for scores in found if scores is not None]

    def _read(self, chain: Chain) -> _Row | ChainScores:
        """The chain as tokens, or why it cannot be scored."""
        if not chain.steps:
            return NO_STEP
        tokens: list[int] = []
        ends: list[int] = []
        for index, piece in enumerate((chain.problem, *chain.steps)):
            piece_tokens = self._encode(piece if piece.endswith(DELIMITER) else piece + DELIMITER)
            if isinstance(piece_tokens, str):
                where = f"step {index}" if index else "the problem"
                return ChainScores(error=ChainError.INVALID, message=f"{where} has {piece_tokens}")
            tokens += piece_tokens
            if index:
                ends.append(len(tokens) - 1)
        if len(tokens) > self.context_tokens_max:
            message = f"the chain has {len(tokens)} tokens; the model reads at most {self.context_tokens_max}"
            return ChainScores(error=ChainError.TOO_LONG, message=message)
        return _Row(tokens, ends)

    def _encode_piece(self, piece: str) -> tuple[int, ...] | str:
        """The tokens of a piece, or the words for what the vocabulary lacks."""
        encoding = self._tokenizer.encode(piece, add_special_tokens=False)
        if self._unknown is not None and self._unknown in encoding.ids:
            start, end = encoding.offsets[encoding.ids.index(self._unknown)]
            return f"{piece[start:end]!r} at character {start + 1}, which the model's vocabulary lacks"
        return tuple(encoding.ids)

    def _bucket(self, tokens: int) -> int:
        """The padded length T of a row, by its own length alone."""
        return min(-(-tokens // TOKENS_BUCKET) * TOKENS_BUCKET, self.context_tokens_max)

    def _run(self, rows: list[_Row]) -> list[ChainScores]:
        """Scores rows of one bucket, at most `ROWS_MAX`, in one call."""
        length = self._bucket(len(rows[0].tokens))
        # A lone row is doubled: a row of padding alone would attend to nothing.
        filled = rows if len(rows) >= ROWS_MIN else rows * ROWS_MIN
        ids = np.zeros((len(filled), length), np.int64)
        mask = np.zeros((len(filled), length), np.int64)
        for ids_row, mask_row, row in zip(ids, mask, filled, strict=True):
            ids_row[: len(row.tokens)] = row.tokens
            mask_row[: len(row.tokens)] = 1
        positions = np.broadcast_to(np.arange(length), ids.shape)
        feed = {"input_ids": ids, "attention_mask": mask, "position_ids": np.ascontiguousarray(positions)}
        for name, (heads, width) in self._no_past.items():
            feed[name] = np.zeros((len(filled), heads, 0, width), np.float32)
        logits = np.asarray(self._session.run(["logits"], feed)[0])
        signs = logits[..., [self._plus, self._minus]].astype(np.float64)
        return [_row_scores(signs[index, row.ends].tolist()) for index, row in enumerate(rows)]

    def _token_id(self, text: str) -> int:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        if len(ids) != 1:
            raise ValueError(f"{text!r} is {len(ids)} tokens of its vocabulary, not one")
        return ids[0]


def _row_scores(signs: list[tuple[float, float]]) -> ChainScores:
    """Scores from the logits of + and - at the end of each step."""
    if not all(math.isfinite(plus) and math.isfinite(minus) for plus, minus in signs):
        return ChainScores(error=ChainError.MODEL, message="the model gave a logit that is no finite number")
    return ChainScores([_sigmoid(plus - minus) for plus, minus in signs])


def _sigmoid(x: float) -> float:
    # `math` and not numpy, whose vector loops may round the last few elements of an array otherwise than the rest.
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def _open_tokenizer(folder: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    # Chains are text of strangers: "<eos>" in them is five characters and no token.
    tokenizer.encode_special_tokens = True
    return tokenizer


def _open_session(model: Path, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Idle threads must not burn the cores that the generator needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def _no_past(session: ort.InferenceSession) -> dict[str, tuple[int, int]]:
    """(H, D) of each past key and value [B, H, P, D]."""
    past = {item.name: item.shape for item in session.get_inputs() if item.name.startswith("past_key_values.")}
    return {name: (int(shape[1]), int(shape[3])) for name, shape in past.items()}


def _content_hash(folder: Path) -> str:
    """Hash of everything that bears on a score, 12 hexadecimal digits."""
    digest = hashlib.sha256()
    for name in (*FILES, "model.onnx.data"):
        if (folder / name).is_file():
            with (folder / name).open("rb") as file:
                digest.update(f"{name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\0".encode())
    return digest.hexdigest()[:12]


def _unknown_token(folder: Path) -> str:
    """The token that stands for what the vocabulary lacks; "" if the tokenizer has none."""
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    return model.get("unk_token") or ""
