"""Every convention's scores against those of the code that its models' cards have, on small models with random weights."""

from pathlib import Path

import numpy as np
import pytest

from ramify.verifier.chains import Chain
from ramify.verifier.loading import load_model
from tests.unit.verifier.conventions.models_made import chains, delimited, scores_of, torch
from tests.unit.verifier.conventions.references import REFERENCES


@pytest.mark.parametrize("name", REFERENCES)
def test_scores_are_those_of_the_models_card(name: str, tmp_path: Path) -> None:
    make, options, marks = REFERENCES[name]
    reference = make(tmp_path)
    scorer = load_model("prm", f"{tmp_path}?backend=transformers&{options}")
    assert scorer.convention == name.split()[0]
    whole = not name.startswith(("orm", "judge", "rlhflow"))  # these cards' code reads a chain again for each step
    asked = chains(marks, (1, 2, 3, 5, 12, 40) if whole else (1, 2, 5)) + chains(marks, (40,))[: 0 if whole else 1]
    with torch.inference_mode():
        wanted = [reference(chain) for chain in asked]
    found = scores_of(scorer, [delimited(chain, "\n" if name == "newline" else "\n\n") for chain in asked])
    for chain, mine, theirs in zip(asked, found, wanted, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-4, err_msg=repr(chain))
    assert np.ptp(np.concatenate(wanted)) > 0.3  # a model whose scores are all alike would prove nothing
    for chain, mine in zip(asked[:12], found, strict=False):
        bare = scores_of(scorer, [Chain(chain.problem, chain.steps)])[0]
        if whole:
            np.testing.assert_allclose(bare, mine, rtol=0, atol=1e-4)
