"""Reward models in PyTorch, as transformers has them: one whole pass over each row.

A classifier's head is found in the weights by its name and not by the model's class, so that no code of a model's maker is run.
Models are causal: what is behind a token has no bearing on it, and that is where rows are padded.

Shapes: B rows, T tokens of a row with its padding, K reads.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ramify.verifier.backends.folder import content_hash, open_tokenizer, read_json, require
from ramify.verifier.errors import StartupError
from ramify.verifier.reading import Head, Pair, Row, Value

try:
    import torch
    import transformers
    from safetensors import safe_open
except ImportError as error:
    raise StartupError(
        f"the backend transformers can't be imported ({error}): install it with `pip install 'ramify[transformers]'`"
    ) from error

Module: TypeAlias = Any  # of PyTorch, which has no types here
I64: TypeAlias = NDArray[np.int64]

TOKENS_BUCKET = 32
PASS_TOKENS_MAX = 1 << 14  # B * T, unless one row has more

_DTYPES = ("auto", "float32", "bfloat16", "float16")
# A classifier's head, by the names of its linear maps; between two there is a rectifier.
_HEADS = (("score",), ("score.0", "score.2"), ("v_head.summary",), ("v_head",), ("classifier",))


class TransformersReader:
    """See the module, and `Reader`.

    Args:
        folder: Holds `config.json`, `tokenizer.json` and weights, as safetensors or in PyTorch's own files.
        head: What is read.
        threads: Threads of one operation on the CPU.
        dtype: "auto" (what the weights are in), "float32", "bfloat16" or "float16".
        device: As PyTorch calls it; "auto" is the first GPU, or else the CPU.

    Raises:
        StartupError: the folder holds no such model.
    """

    backend = "transformers"
    batch_tokens_max = 1 << 13
    calls_max = 1
    failure = ""

    def __init__(self, folder: Path, head: Head, *, threads: int = 1, dtype: str = "auto", device: str = "auto") -> None:
        require(folder, ["config.json", "tokenizer.json"])
        if dtype not in _DTYPES:
            raise StartupError(f"dtype is '{dtype}'; it can be {', '.join(_DTYPES)}")
        self._threads = threads
        self.tokenizer: Tokenizer = open_tokenizer(folder)
        self.context_tokens_max = _context(folder)
        weights = _weight_files(folder)
        self.revision = f"{content_hash(folder, ['config.json', *weights, 'tokenizer.json'])}-{dtype}"
        try:
            self._device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
            self._model = _load(folder, head, dtype).to(self._device).eval()
            self._head = None if isinstance(head, Pair) else _load_head(folder, weights, head, dtype).to(self._device)
            self._columns = (0, 1) if isinstance(head, Pair) else (0, None) if isinstance(head, Value) else (head.good, head.bad)
            self._check_causal()
        except StartupError:
            raise
        except Exception as error:  # PyTorch, safetensors and transformers raise what they like
            raise StartupError(f"cannot load the folder '{folder}': {type(error).__name__}: {error}") from error

    def read(self, rows: Sequence[Row]) -> list[NDArray[np.float64]]:
        """See `Reader`."""
        found: dict[int, NDArray[np.float64]] = {}
        lengths: dict[int, list[int]] = defaultdict(list)
        for index, row in enumerate(rows):
            length = -(-len(row.tokens) // TOKENS_BUCKET) * TOKENS_BUCKET
            lengths[max(len(row.tokens), min(length, self.context_tokens_max))].append(index)
        for length, members in sorted(lengths.items()):
            size = max(1, PASS_TOKENS_MAX // length)
            for start in range(0, len(members), size):
                part = members[start : start + size]
                found |= zip(part, self._pass([rows[index] for index in part], length), strict=True)
        return [found[index] for index in range(len(rows))]

    def close(self) -> None:
        """See `Reader`."""
        del self._model, self._head

    def _pass(self, rows: Sequence[Row], length: int) -> list[NDArray[np.float64]]:
        """The log-odds of rows of at most `length` tokens."""
        ids = np.zeros((len(rows), length), np.int64)
        for line, row in zip(ids, rows, strict=True):
            line[: len(row.tokens)] = row.tokens
        counts = [len(row.reads) for row in rows]
        odds = self._odds(
            ids, np.repeat(np.arange(len(rows)), counts), np.concatenate([row.reads for row in rows]).astype(np.int64)
        )
        return np.split(odds, np.cumsum(counts)[:-1])

    def _odds(self, ids: I64, rows: I64, positions: I64) -> NDArray[np.float64]:
        """`[K]` log-odds at places in tokens `[B, T]`."""
        torch.set_num_threads(self._threads)  # of the process: another model may have set it
        with torch.inference_mode():
            at = torch.from_numpy(rows).to(self._device), torch.from_numpy(positions).to(self._device)
            out = self._model(input_ids=torch.from_numpy(ids).to(self._device), use_cache=False)
            # The head goes over all positions: a product over those that are read would have a shape that depends on the company.
            if self._head is None:
                numbers = out.logits[at]
            else:
                numbers = self._head(out.last_hidden_state.to(self._head[0].weight.dtype))[at]
        found: NDArray[np.float64] = numbers.cpu().double().numpy()
        good, bad = self._columns
        return found[:, good] if bad is None else found[:, good] - found[:, bad]

    def _check_causal(self) -> None:
        """Raises `StartupError` where a number depends on what is behind it. Warms up as well."""
        ids = np.ones((2, min(TOKENS_BUCKET, self.context_tokens_max)), np.int64)
        half = (ids.shape[1] + 1) // 2
        ids[1, half:] = 0
        where = np.tile(np.arange(half), 2)
        one, other = np.split(self._odds(ids, np.repeat(np.arange(2), half), where), 2)
        rounding = 64 * torch.finfo(self._model.dtype).eps * np.abs(one).max()
        if np.isfinite(one).all() and not np.allclose(one, other, rtol=0, atol=rounding):
            raise StartupError("the model is not causal: what is behind a token bears on its number")


def _load(folder: Path, head: Head, dtype: str) -> Module:
    """The model without its head; with a `Pair` the whole, whose only logits are those two."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    kind: Any = transformers.AutoModelForCausalLM if isinstance(head, Pair) else transformers.AutoModel
    model, told = kind.from_pretrained(
        folder, dtype=dtype, trust_remote_code=False, local_files_only=True, output_loading_info=True
    )
    if missing := sorted(told["missing_keys"]):
        raise StartupError(f"the weights in '{folder}' lack {', '.join(missing[:3])}{' and others' if len(missing) > 3 else ''}")
    if isinstance(head, Pair):
        whole = model.get_output_embeddings()
        columns = torch.tensor([head.good, head.bad])
        bias = whole.bias.data[columns] if getattr(whole, "bias", None) is not None else None
        model.set_output_embeddings(_linear(whole.weight.data[columns], bias))
    return model


def _load_head(folder: Path, weights: Sequence[str], head: Head, dtype: str) -> Module:
    """The classifier's head, as a sequence of maps."""
    tensors = {name: tensor for file in weights for name, tensor in _head_tensors(folder / file)}
    layers = next((each for each in _HEADS if all(f"{name}.weight" in tensors for name in each)), None)
    if layers is None:
        raise StartupError(f"the weights in '{folder}' have no head: none of {', '.join('+'.join(each) for each in _HEADS)}")
    maps = [_linear(tensors[f"{name}.weight"], tensors.get(f"{name}.bias")) for name in layers]
    outputs, needed = maps[-1].out_features, 1 if isinstance(head, Value) else 2
    if outputs != needed:
        raise StartupError(f"the model gives {outputs} numbers for a token; the convention reads {needed}")
    made = torch.nn.Sequential(*(part for each in maps for part in (torch.nn.ReLU(), each)))[1:]
    return made if dtype == "auto" else made.to(getattr(torch, dtype))


def _head_tensors(file: Path) -> Iterator[tuple[str, Any]]:
    """Those of a file's tensors that may be of a head, by name."""
    names = tuple(f"{name}." for layers in _HEADS for name in layers)
    if file.suffix == ".safetensors":
        with safe_open(file, "pt") as opened:
            yield from ((name, opened.get_tensor(name)) for name in opened.keys() if name.startswith(names))  # noqa: SIM118
    else:
        opened = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
        yield from ((name, tensor.clone()) for name, tensor in opened.items() if name.startswith(names))


def _linear(weight: Any, bias: Any) -> Module:
    made = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype)
    made.weight.data = weight
    if bias is not None:
        made.bias.data = bias
    return made


def _weight_files(folder: Path) -> list[str]:
    """The names of the files that transformers loads. Raises `StartupError`."""
    for pattern in ("model*.safetensors", "pytorch_model*.bin"):
        if found := sorted(path.name for path in folder.glob(pattern)):
            return found
    raise StartupError(f"the folder '{folder}' has no weights: neither model.onnx nor *.safetensors nor pytorch_model*.bin")


def _context(folder: Path) -> int:
    config = read_json(folder / "config.json")
    config = config.get("text_config", config)
    tokens = config.get("max_position_embeddings") or config.get("n_positions")
    if not isinstance(tokens, int):
        raise StartupError(f"{folder / 'config.json'} does not say max_position_embeddings: how long a row may be")
    return tokens
