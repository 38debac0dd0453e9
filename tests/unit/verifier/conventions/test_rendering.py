"""What conventions make of any texts: the tokens that the whole text has, and for a shorter chain the first of a longer one's."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ramify.verifier.chains import Chain
from ramify.verifier.conventions import CONVENTIONS, make_convention, read_subject
from ramify.verifier.conventions.base import Convention
from ramify.verifier.conventions.judge import TEMPLATE
from tests.unit.verifier.conventions.tokenizers_made import llama3, mistral, qwen

# Characters that join in words, and do not: letters that merge, white space, signs, accents to be composed, bytes.
TEXTS = st.lists(
    st.sampled_from(
        ["a", "the", "Step", " ", "  ", "\n", "\n\n", "16", "+", "-", "ки", "и", "e\u0301", "数", "🦆", "\t", "\\", "."]
    ),
    max_size=6,
).map("".join)
MARKED = st.lists(
    st.sampled_from(["a", " ", "\n", "<extra_0>", "<|im_end|>", "<s>", "</s>", "<|eot_id|>", "ки"]), max_size=5
).map("".join)
CHAINS = st.builds(Chain, TEXTS | MARKED, st.lists(TEXTS | MARKED, min_size=1, max_size=5).map(tuple))
CLEAN = st.builds(Chain, TEXTS, st.lists(TEXTS, min_size=1, max_size=5).map(tuple))

TOKENIZERS: dict[str, Callable[[], Any]] = {
    "qwen-math-prm": qwen,
    "math-shepherd": mistral,
    "rlhflow": llama3,
    "skywork": qwen,
    "token-classifier": mistral,
    "value-head": llama3,
    "newline": qwen,
    "orm": mistral,
    "judge": lambda: mistral(True),
}
CONFIGS = {"token-classifier": {"num_labels": 2}}


@cache
def convention_of(name: str) -> Convention:
    with TemporaryDirectory() as folder:
        TOKENIZERS[name]().save_pretrained(folder)
        subject = read_subject(Path(folder))._replace(config=CONFIGS.get(name, {}))
    return make_convention(name, subject, {})


def test_every_convention_is_tried() -> None:
    assert TOKENIZERS.keys() == CONVENTIONS.keys()


@pytest.mark.parametrize("name", TOKENIZERS)
@given(chain=CHAINS, data=st.data())
def test_each_wanted_step_is_read_where_the_chain_that_ends_with_it_ends(name: str, chain: Chain, data: st.DataObject) -> None:
    convention, size = convention_of(name), len(chain.steps)
    rows = convention.render(chain.problem, chain.steps, 0)
    assert len(rows) == (size if name in ("orm", "judge") else 1)
    reads = [row.tokens[: read + 1].tolist() for row in rows for read in row.reads]
    assert len(reads) == size
    for row in rows:
        assert row.chunks[-1] == len(row.tokens)
        assert (row.chunks > 0).all()
        assert (row.chunks[1:] > row.chunks[:-1]).all()
        assert set(row.reads + 1) <= set(row.chunks)
    ends = data.draw(st.integers(1, size))
    shorter = convention.render(chain.problem, chain.steps[:ends], 0)
    assert [row.tokens[: read + 1].tolist() for row in shorter for read in row.reads] == reads[:ends]
    if len(rows) == 1:
        assert shorter[0].chunks.tolist() == rows[0].chunks.tolist()[: len(shorter[0].chunks)]
    known = data.draw(st.integers(0, size - 1))
    rest = convention.render(chain.problem, chain.steps, known)
    assert [row.tokens[: read + 1].tolist() for row in rest for read in row.reads] == reads[known:]
    assert [row.chunks.tolist() for row in rest] == [row.chunks.tolist() for row in rows][-len(rest) :]


def only_row(name: str, chain: Chain) -> list[int]:
    found: list[int] = convention_of(name).render(chain.problem, chain.steps, len(chain.steps) - 1)[0].tokens.tolist()
    return found


def chat(tokenizer: Any, said: list[tuple[str, str]], **options: Any) -> list[int]:
    text = tokenizer.apply_chat_template([{"role": role, "content": text} for role, text in said], tokenize=False, **options)
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids


@given(chain=CLEAN)
def test_qwen_has_the_tokens_of_the_whole_chat(chain: Chain) -> None:
    found = only_row("qwen-math-prm", chain)
    system = "Please reason step by step, and put your final answer within \\boxed{}."
    answer = "".join(step.rstrip("\n") + "<extra_0>" for step in chain.steps)
    whole = chat(qwen(), [("system", system), ("user", chain.problem), ("assistant", answer)])
    assert found == whole[: len(found)]
    assert whole.count(found[-1]) == len(chain.steps)
    assert qwen().decode(whole[len(found) :]) == "<|im_end|>\n"


@given(chain=CLEAN)
def test_math_shepherd_has_the_tokens_of_the_whole_text(chain: Chain) -> None:
    first = chain.steps[0].strip()
    assume(first or chain.problem[-1:].strip())  # the card says nothing of a tag right behind white space
    lines = [f"{step.rstrip()} ки" if index or first else "ки" for index, step in enumerate(chain.steps)]
    assert only_row("math-shepherd", chain) == mistral().encode(f"{chain.problem} " + "\n".join(lines))


@given(chain=CLEAN)
def test_rlhflow_has_the_tokens_of_the_whole_chat(chain: Chain) -> None:
    found = only_row("rlhflow", chain)
    texts = [f"{chain.problem} {chain.steps[0].strip()}", *(step.strip() for step in chain.steps[1:])]
    whole = chat(llama3(), [turn for text in texts for turn in (("user", text), ("assistant", "+"))])
    assert found == whole[: len(found)]
    assert llama3().decode(whole[len(found) :]) == "+<|eot_id|>"


@given(chain=CLEAN)
def test_a_judge_has_the_tokens_of_the_whole_chat_also_where_a_text_alone_gets_a_space(chain: Chain) -> None:
    solution = "".join(chain.steps).rstrip("\n")
    asked = TEMPLATE.replace("{problem}", chain.problem).replace("{solution}", solution)
    assert only_row("judge", chain) == chat(mistral(True), [("user", asked)], add_generation_prompt=True)
