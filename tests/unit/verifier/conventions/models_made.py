"""Small reward models with random weights, in the folders in which their makers publish them, and the chains to try them on."""

import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ramify.verifier.backends.base import Scorer
from ramify.verifier.chains import Chain
from ramify.verifier.columns import ChainColumns

torch = pytest.importorskip("torch", reason="the reference is PyTorch: pip install -e '.[dev]'")
transformers = pytest.importorskip("transformers", reason="the reference is transformers: pip install -e '.[dev]'")
safetensors = pytest.importorskip("safetensors.torch")

torch.set_num_threads(1)

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "initializer_range": 0.3,  # a wide one, for scores that differ by more than rounding
    "tie_word_embeddings": False,
}


def config_of(kind: str, tokenizer: Any, **more: Any) -> Any:
    """A small configuration of a family: "Qwen2", "Llama" or "Mistral"."""
    return getattr(transformers, f"{kind}Config")(vocab_size=len(tokenizer), **SIZES, **more)


def seeded(made: Any, config: Any) -> Any:
    """A model with random weights, the same each time, and biases among them."""
    torch.manual_seed(0)
    model = made(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.normal_(0, 0.3)
    return model


def publish(folder: Path, config: Any, tensors: dict[str, Any], tokenizer: Any, **said: Any) -> None:
    """A folder with weights under names of the maker's, where no class of transformers would write them."""
    config.save_pretrained(folder)
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**told, **said}))
    safetensors.save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    tokenizer.save_pretrained(folder)


def head_of(*sizes: int) -> Any:
    """Linear maps with rectifiers between them, as PyTorch numbers them in a sequence."""
    maps = [torch.nn.Linear(a, b) for a, b in pairwise(sizes)]
    for each in maps:
        torch.nn.init.normal_(each.weight, 0, 0.4)
    return torch.nn.Sequential(*[part for each in maps for part in (torch.nn.ReLU(), each)][1:]).eval()


WORDS = [
    "ducks",
    "lay",
    "16",
    "eggs",
    "3",
    "+",
    "-",
    "=",
    "\\boxed{}",
    "数学",
    "naïve",
    "🦆",
    "ки",
    "x²",
    "Größe",
    "\t",
    "of",
    "the",
]
STRANGE = [
    "",
    " ",
    "  leading and trailing  ",
    "two\n\nparagraphs",
    "\n\nbegins with newlines",
    "ends with spaces   ",
    "e\u0301 decomposed, and \u200b nothing",
    "Штаны ки",
    "+",
    "- 1",
]


def chains(marks: tuple[str, ...] = (), lengths: tuple[int, ...] = (1, 2, 3, 5, 12, 40)) -> list[Chain]:
    """Chains of 1 to 40 steps: words, strange texts, and the given marks as plain text within both."""
    rng = random.Random(7)
    odd = [*STRANGE, *(f"a {mark} b{mark}" for mark in marks), *marks]

    def text() -> str:
        words = [rng.choice([*WORDS, *marks]) for _ in range(rng.randint(1, 8))]
        return rng.choice(odd) if rng.random() < 0.3 else " ".join(words)

    made = [Chain(f"How many? {text()}", tuple(text() for _ in range(length))) for length in lengths for _ in range(2)]
    return [*made, *(Chain("How many?", (each,)) for each in odd), Chain("", ("a", ""))]


def delimited(chain: Chain, delimiter: str) -> Chain:
    """The chain as a generator writes it, each step with its delimiter."""
    return Chain(chain.problem, tuple(step + delimiter for step in chain.steps))


def scores_of(scorer: Scorer, asked: list[Chain]) -> list[np.ndarray[Any, np.dtype[np.float64]]]:
    """Each chain's scores; none may have a fault."""
    columns = ChainColumns.of(asked)
    found = scorer.score_columns(columns)
    assert found.faults == []
    return [np.array(each.scores) for each in found.chains(columns)]
