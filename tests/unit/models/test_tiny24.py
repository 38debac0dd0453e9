"""The tiny models are what they claim to be: loadable by other tools, and never shown the held-out puzzles' form."""

import json
import math
import struct
from pathlib import Path

import onnxruntime
import pytest
from tokenizers import Tokenizer

from ramify.verifier.rules.countdown import parse_problem

MODELS = Path(__file__).parents[3] / "infra" / "models" / "tiny24"


@pytest.mark.parametrize("name", ["generator", "prm"])
def test_a_folder_is_a_hugging_face_llama(name: str) -> None:
    config = json.loads((MODELS / name / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    tokenizer = Tokenizer.from_file(str(MODELS / name / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == config["vocab_size"]
    text = "4 5 6 10>24\n8/3=8|3:3 8 8|3\n"
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert len(ids) == len(text), "one token a character"
    assert tokenizer.decode(ids) == text
    shapes = safetensors_shapes(MODELS / name / "model.safetensors")
    assert shapes["model.embed_tokens.weight"] == [config["vocab_size"], config["hidden_size"]]
    assert 0.5e6 < sum(math.prod(shape) for shape in shapes.values()) < 1.3e6


@pytest.mark.parametrize("name", ["generator", "prm"])
def test_the_onnx_file_takes_past_key_values(name: str) -> None:
    config = json.loads((MODELS / name / "config.json").read_text())
    session = onnxruntime.InferenceSession(MODELS / name / "model.onnx", providers=["CPUExecutionProvider"])
    inputs, outputs = ({node.name for node in nodes} for nodes in (session.get_inputs(), session.get_outputs()))
    layers = range(config["num_hidden_layers"])
    past = {f"past_key_values.{layer}.{part}" for layer in layers for part in ("key", "value")}
    assert inputs == {"input_ids", "attention_mask", "position_ids"} | past
    assert outputs == {"logits"} | {f"present.{layer}.{part}" for layer in layers for part in ("key", "value")}


def test_200_puzzles_are_held_out() -> None:
    lines = (MODELS / "heldout.txt").read_text().splitlines()
    puzzles = [parse_problem(line) for line in lines]
    assert len(set(lines)) == 200
    assert [puzzle.prompt for puzzle in puzzles] == lines
    assert all(len(puzzle.numbers) == 4 and puzzle.target == 24 for puzzle in puzzles)
    assert all(1 <= number <= 13 for puzzle in puzzles for number in puzzle.numbers)


def safetensors_shapes(file: Path) -> dict[str, list[int]]:
    """Shapes by name, from the file's header: its length as 8 bytes, then JSON."""
    with file.open("rb") as data:
        (length,) = struct.unpack("<Q", data.read(8))
        header = json.loads(data.read(length))
    return {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}
