"""Small reward models with random weights, as folders, and what plain transformers code says of their tokens."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from tokenizers import Tokenizer, models

from ramify.verifier.reading import Head, Labels, Pair, Row, Value
from tests.vllm.conftest import BLOCK

VOCABULARY, WIDTH, CONTEXT = 512, 128, 1024
POISON = VOCABULARY - 1  # a token whose embedding is no number
TAG = POISON - 1
CLOSE = 1e-3
GOOD, BAD = 7, 11
ARGUMENTS = {
    "dtype": "float32",
    "enforce_eager": "true",
    "block_size": str(BLOCK),
    "max_num_seqs": "16",
    "max_num_batched_tokens": "256",
    "num_gpu_blocks_override": "160",
}

Logits = Callable[[torch.Tensor, list[int]], torch.Tensor]  # of tokens [1, T] at K positions: [K, L]


def shape(**more: Any) -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
        "initializer_range": 0.2,
        **more,
    }


class Kind(NamedTuple):
    """A model's architecture, how it is made, and what is read of it."""

    architecture: str
    head: Head
    make: Callable[[], tuple[Any, Logits]]


def _reward_model(labels: int) -> Callable[[], tuple[Any, Logits]]:
    """Qwen's own, which transformers has not: two layers on top of the hidden states."""

    def make() -> tuple[Any, Logits]:
        model: Any = transformers.Qwen2ForTokenClassification(transformers.Qwen2Config(**shape(num_labels=labels)))
        model.score = torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.ReLU(), torch.nn.Linear(WIDTH, labels))
        return model, lambda tokens, reads: model.score(model.model(tokens).last_hidden_state)[0, reads]

    return make


def _token_classifier() -> tuple[Any, Logits]:
    model: Any = transformers.Qwen2ForTokenClassification(transformers.Qwen2Config(**shape(num_labels=2)))
    torch.nn.init.normal_(model.score.bias)
    return model, lambda tokens, reads: model(tokens).logits[0, reads]


def _sequence_classifier() -> tuple[Any, Logits]:
    model: Any = transformers.LlamaForSequenceClassification(transformers.LlamaConfig(**shape(num_labels=1)))
    return model, lambda tokens, reads: torch.cat([model(tokens[:, : at + 1]).logits for at in reads])


def _language_model() -> tuple[Any, Logits]:
    model: Any = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape()))
    return model, lambda tokens, reads: model(tokens).logits[0, reads]


KINDS = {
    "process": Kind("Qwen2ForProcessRewardModel", Labels(), _reward_model(2)),
    "reward": Kind("Qwen2ForRewardModel", Value(), _reward_model(1)),
    "tokens": Kind("Qwen2ForTokenClassification", Labels(good=0, bad=1), _token_classifier),
    "outcome": Kind("LlamaForSequenceClassification", Value(), _sequence_classifier),
    "pair": Kind("LlamaForCausalLM", Pair(GOOD, BAD), _language_model),
}


class RewardModel:
    """A model in a folder; `log_odds` is the reference."""

    def __init__(self, name: str, folder: Path) -> None:
        self.head = KINDS[name].head
        self.folder = folder
        torch.manual_seed(len(name))
        model, self._logits = KINDS[name].make()
        model.eval()
        with torch.no_grad():
            model.get_input_embeddings().weight[POISON] = torch.nan
        model.config.architectures = [KINDS[name].architecture]
        model.save_pretrained(folder)
        model.config.architectures = [KINDS[name].architecture]  # saving has set it to the class's
        model.config.save_pretrained(folder)
        Tokenizer(models.WordLevel({f"<{at}>": at for at in range(VOCABULARY)}, "<0>")).save(str(folder / "tokenizer.json"))

    def log_odds(self, row: Row) -> NDArray[np.float64]:
        """The numbers at the row's reads."""
        with torch.no_grad():
            logits = self._logits(torch.from_numpy(row.tokens.astype(np.int64))[None], row.reads.tolist()).double().numpy()
        if isinstance(self.head, Value):
            return np.asarray(logits[:, 0])
        return np.asarray(logits[:, self.head.good] - logits[:, self.head.bad])


def chain(seed: int, steps: int, step_tokens: int = 9) -> Row:
    """A problem of 40 tokens and steps, each with a read at its end, a tag."""
    random = np.random.default_rng(seed)
    tokens = random.integers(1, TAG, 40 + steps * step_tokens, dtype=np.int32)
    reads = np.arange(40 + step_tokens, len(tokens) + 1, step_tokens, dtype=np.int32) - 1
    tokens[reads] = TAG
    return Row(tokens, reads, np.concatenate([[40], reads + 1]).astype(np.int32))


def first(row: Row, steps: int) -> Row:
    """The chain's first steps, of which only the last is to be read."""
    return Row(row.tokens[: row.chunks[steps]], row.reads[steps - 1 : steps], row.chunks[: steps + 1])


def agree(found: list[NDArray[np.float64]], wanted: list[NDArray[np.float64]]) -> None:
    for numbers, others in zip(found, wanted, strict=True):
        assert numbers.dtype == np.float64
        np.testing.assert_allclose(numbers, others, rtol=0, atol=CLOSE)
