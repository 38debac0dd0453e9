"""The reader that runs models with PyTorch."""

import importlib
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ramify.verifier.backends import transformers as backend
from ramify.verifier.backends.transformers import TransformersReader
from ramify.verifier.chains import Chain, ChainError
from ramify.verifier.columns import ChainColumns
from ramify.verifier.errors import StartupError
from ramify.verifier.loading import load_model
from ramify.verifier.reading import Head, Labels, Pair, Row, Value
from tests.unit.verifier.conventions.models_made import seeded, torch, transformers
from tests.unit.verifier.conventions.references import REFERENCES
from tests.unit.verifier.conventions.tokenizers_made import llama3, qwen


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model."""
    made = tmp_path_factory.mktemp("language-model")
    REFERENCES["newline"][0](made)
    return made


@pytest.fixture(scope="module")
def prm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2.5-Math-PRM."""
    made = tmp_path_factory.mktemp("prm")
    REFERENCES["qwen-math-prm"][0](made)
    return made


def row_of(rng: np.random.Generator, length: int, reads: int) -> Row:
    at = np.sort(rng.choice(length, min(reads, length), replace=False)).astype(np.int32)
    return Row(rng.integers(5, 200, length, np.int32), at, np.array([length], np.int32))


def changed(folder: Path, to: Path, change: Any) -> Path:
    """A copy of a folder with other weights."""
    shutil.copytree(folder, to, dirs_exist_ok=True)
    file = to / "model.safetensors"
    tensors = importlib.import_module("safetensors.torch").load_file(file)
    importlib.import_module("safetensors.torch").save_file(change(tensors), file, {"format": "pt"})
    return to


def test_a_row_is_read_alike_in_any_company(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, rng = TransformersReader(folder, Pair(10, 11)), np.random.default_rng(1)
    rows = [row_of(rng, int(length), 4) for length in [1, *rng.integers(1, 200, 30), 200, 32, 33]]
    alone = [reader.read([row])[0] for row in rows]
    monkeypatch.setattr(backend, "PASS_TOKENS_MAX", 300)
    for found in (reader.read(rows), reader.read(rows[::-1])[::-1]):
        for row, mine, theirs in zip(rows, found, alone, strict=True):
            assert mine.shape == row.reads.shape
            np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-4)
    assert np.ptp(np.concatenate(alone)) > 1


def test_a_pairs_log_odds_are_the_difference_of_its_logits(folder: Path) -> None:
    row = row_of(np.random.default_rng(2), 50, 50)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.inference_mode():
        logits = model(torch.from_numpy(row.tokens.astype(np.int64))[None]).logits[0].double().numpy()
    found = TransformersReader(folder, Pair(7, 300)).read([row])[0]
    np.testing.assert_allclose(found, logits[:, 7] - logits[:, 300], rtol=0, atol=1e-4)


def test_the_longest_row_is_read(folder: Path) -> None:
    reader = TransformersReader(folder, Pair(1, 2))
    assert reader.context_tokens_max == 4096
    assert len(reader.read([row_of(np.random.default_rng(3), 4096, 2)])[0]) == 2
    reader.close()


def test_weights_in_pytorchs_own_files(prm: Path, tmp_path: Path) -> None:
    shutil.copytree(prm, tmp_path, dirs_exist_ok=True)
    tensors = importlib.import_module("safetensors.torch").load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    row = row_of(np.random.default_rng(4), 20, 3)
    wanted, found = (TransformersReader(each, Labels()).read([row])[0] for each in (prm, tmp_path))
    np.testing.assert_array_equal(found, wanted)


def test_the_revision_is_of_the_content_and_the_precision(prm: Path, tmp_path: Path) -> None:
    first = TransformersReader(prm, Labels())
    copy = changed(prm, tmp_path / "copy", lambda tensors: tensors)
    assert TransformersReader(copy, Labels()).revision == TransformersReader(copy, Labels(), threads=2).revision
    half = TransformersReader(prm, Labels(), dtype="bfloat16")
    other = changed(prm, tmp_path / "other", lambda tensors: {name: 2 * tensor for name, tensor in tensors.items()})
    assert len({first.revision, half.revision, TransformersReader(other, Labels()).revision}) == 3
    row = row_of(np.random.default_rng(5), 20, 3)
    np.testing.assert_allclose(half.read([row])[0], first.read([row])[0], atol=1.0)


def test_weights_that_are_no_numbers_are_a_fault_of_each_chain_that_meets_them(prm: Path, tmp_path: Path) -> None:
    bad = qwen().encode("🦆")[0]

    def spoil(tensors: dict[str, Any]) -> dict[str, Any]:
        tensors["model.embed_tokens.weight"][bad] = float("nan")
        return tensors

    scorer = load_model("prm", str(changed(prm, tmp_path, spoil)))
    asked = ChainColumns.of([Chain("a", ("b", "c")), Chain("a", ("b", "🦆", "c")), Chain("a", ("b", "c"))])
    found = scorer.score_columns(asked)
    assert [(fault.chain, fault.error) for fault in found.faults] == [(1, ChainError.MODEL)]
    assert found.faults[0].message.startswith("the model gave nan at step ")
    assert np.isfinite(found.scores[[0, 1, 5, 6]]).all()
    assert np.isnan(found.scores[2:5]).all()


def test_a_chain_that_is_too_long_is_a_fault(prm: Path) -> None:
    asked = ChainColumns.of([Chain("a", ("+ " * 5000,)), Chain("a", ("b",))])
    found = load_model("prm", str(prm)).score_columns(asked)
    assert [fault.chain for fault in found.faults] == [0]
    assert found.faults[0].error == ChainError.TOO_LONG
    assert found.faults[0].message.endswith("tokens; the model reads at most 4096")


@pytest.mark.parametrize(
    ("head", "dropped", "message"),
    [
        (Labels(), "score.", "have no head: none of score, score.0+score.2, v_head.summary"),
        (Labels(), "model.norm.weight", "lack norm.weight"),
        (Value(), "nothing", "the model gives 2 numbers for a token; the convention reads 1"),
        (Pair(1, 2), "nothing", "lack lm_head.weight"),
    ],
)
def test_weights_that_do_not_fit(head: Head, dropped: str, message: str, prm: Path, tmp_path: Path) -> None:
    def drop(tensors: dict[str, Any]) -> dict[str, Any]:
        return {name: tensor for name, tensor in tensors.items() if not name.startswith(dropped)}

    with pytest.raises(StartupError, match=r"the weights in|the model gives") as caught:
        TransformersReader(changed(prm, tmp_path, drop), head)
    assert message in str(caught.value)


def test_a_model_that_looks_ahead_is_refused(tmp_path: Path) -> None:
    config = transformers.DistilBertConfig(vocab_size=600, dim=32, hidden_dim=64, n_layers=2, n_heads=4, num_labels=2)
    seeded(transformers.DistilBertForTokenClassification, config).save_pretrained(tmp_path)
    llama3().save_pretrained(tmp_path)
    with pytest.raises(StartupError, match="the model is not causal"):
        load_model("prm", f"{tmp_path}?convention=token-classifier")


def test_what_else_can_not_be_loaded(prm: Path, tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="dtype is 'int4'; it can be auto, float32"):
        TransformersReader(prm, Labels(), dtype="int4")
    with pytest.raises(StartupError, match=r"cannot load the folder .*device"):
        TransformersReader(prm, Labels(), device="abacus")
    shutil.copytree(prm, tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").write_bytes(b"12345678")
    with pytest.raises(StartupError, match="cannot load the folder"):
        TransformersReader(tmp_path, Labels())
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(StartupError, match=r"has no weights: neither model.onnx nor"):
        TransformersReader(tmp_path, Labels())


def test_without_pytorch_it_says_how_to_install_it(prm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "ramify.verifier.backends.transformers")
    with pytest.raises(StartupError, match=r"model 'prm': the backend transformers can't be imported .*ramify.transformers"):
        load_model("prm", str(prm))
