"""What the cards of reward models say to do, written plainly with transformers: the scores of one chain's steps.

Each entry of `REFERENCES` makes a model's folder and gives its reference. Where a text looks like a mark, a card's own code
would read the mark; there the texts between marks are put into tokens one by one.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ramify.verifier.chains import Chain
from ramify.verifier.conventions.judge import TEMPLATE
from tests.unit.verifier.conventions.models_made import config_of, head_of, publish, seeded, torch, transformers
from tests.unit.verifier.conventions.tokenizers_made import Mark, llama3, mistral, pieces, plain, qwen

Reference = Callable[[Chain], NDArray[np.float64]]

IM_START, IM_END, EXTRA = Mark("<|im_start|>"), Mark("<|im_end|>"), Mark("<extra_0>")
BEGIN, HEADER, HEADER_END, EOT = map(Mark, ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"))
SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."


def has_mark(tokenizer: Any, chain: Chain) -> bool:
    return any(mark in text for mark in tokenizer.get_added_vocab() for text in (chain.problem, *chain.steps))


def numbers(tensor: Any) -> NDArray[np.float64]:
    found: NDArray[np.float64] = tensor.detach().double().numpy()
    return found


def llama3_ids(tokenizer: Any, said: list[tuple[str, str]]) -> list[int]:
    parts = [part for role, text in said for part in (HEADER, role, HEADER_END, f"\n\n{text}", EOT)]
    return pieces(tokenizer, BEGIN, *parts)


def qwen_math_prm(folder: Path) -> Reference:
    """https://huggingface.co/Qwen/Qwen2.5-Math-PRM-7B."""
    tokenizer = qwen()
    config = config_of("Qwen2", tokenizer)
    body, head = seeded(transformers.Qwen2Model, config), head_of(32, 32, 2)
    tensors = {f"model.{name}": tensor for name, tensor in body.state_dict().items()}
    tensors |= {f"score.{name}": tensor for name, tensor in head.state_dict().items()}
    remote = {"AutoModel": "modeling_qwen2_rm.Qwen2ForProcessRewardModel"}
    publish(folder, config, tensors, tokenizer, architectures=["Qwen2ForProcessRewardModel"], auto_map=remote)
    tag = tokenizer.encode("<extra_0>")[0]

    def ids_of(chain: Chain) -> list[int]:
        said = [("system", SYSTEM), ("user", chain.problem), ("assistant", "<extra_0>".join(chain.steps) + "<extra_0>")]
        if not has_mark(tokenizer, chain):
            messages = [{"role": role, "content": content} for role, content in said]
            ids: list[int] = tokenizer.encode(tokenizer.apply_chat_template(messages, tokenize=False))
            return ids
        asked = [part for role, text in said[:2] for part in (IM_START, f"{role}\n{text}", IM_END, "\n")]
        first, *others = chain.steps
        answered = [part for step in others for part in (step, EXTRA)]
        return pieces(tokenizer, *asked, IM_START, f"assistant\n{first}", EXTRA, *answered, IM_END, "\n")

    def scores(chain: Chain) -> NDArray[np.float64]:
        ids = torch.tensor([ids_of(chain)])
        probabilities = head(body(input_ids=ids).last_hidden_state).softmax(dim=-1)
        return numbers(probabilities[ids == tag][:, 1])

    return scores


def math_shepherd(folder: Path) -> Reference:
    """https://huggingface.co/peiyi9979/math-shepherd-mistral-7b-prm."""
    tokenizer = mistral()
    model = seeded(transformers.MistralForCausalLM, config_of("Mistral", tokenizer))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    candidates = tokenizer.encode("+ -")[1:]
    tag = tokenizer.encode("ки")[-1]

    def text_of(chain: Chain) -> str:
        steps = [f"{step.rstrip()} ки" for step in chain.steps]
        steps[0] = steps[0].strip() if not chain.steps[0].strip() else steps[0]
        return f"{chain.problem} " + "\n".join(steps)

    def scores(chain: Chain) -> NDArray[np.float64]:
        ids = torch.tensor([tokenizer.encode(text_of(chain), split_special_tokens=True)])
        at = (ids[0] == tag).nonzero()[:, 0]
        if len(at) != len(chain.steps):  # a text has the tag: the model sees it, and no score is read there
            parts = [Chain(chain.problem, chain.steps[:size]) for size in range(1, len(chain.steps) + 1)]
            at = torch.tensor([len(tokenizer.encode(text_of(part), split_special_tokens=True)) - 1 for part in parts])
        return numbers(model(ids).logits[0, at][:, candidates].softmax(dim=-1)[:, 0])

    return scores


def rlhflow(folder: Path) -> Reference:
    """https://github.com/RLHFlow/RLHF-Reward-Modeling, math-rm/prm_evaluate.py."""
    tokenizer = llama3()
    model = seeded(transformers.LlamaForCausalLM, config_of("Llama", tokenizer))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    candidates = [tokenizer.encode("+")[-1], tokenizer.encode("-")[-1]]

    def ids_of(said: list[str], marked: bool) -> list[int]:
        if not marked:
            turns = [[{"role": "user", "content": text}, {"role": "assistant", "content": "+"}] for text in said]
            text = tokenizer.apply_chat_template([each for turn in turns for each in turn], tokenize=False)
            ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
            return ids
        spoken = [turn for text in said for turn in (("user", text.strip()), ("assistant", "+"))]
        return llama3_ids(tokenizer, [("system", "Today is a day."), *spoken])

    def scores(chain: Chain) -> NDArray[np.float64]:
        found, said = [], []
        for index, step in enumerate(chain.steps):
            said.append(step.strip() if index else f"{chain.problem} {step.strip()}")
            ids = torch.tensor([ids_of(said, has_mark(tokenizer, chain))])
            found.append(model(ids).logits[0, -3, candidates].softmax(dim=-1)[0])
        return numbers(torch.stack(found))

    return scores


def skywork(folder: Path) -> Reference:
    """https://github.com/SkyworkAI/skywork-o1-prm-inference."""
    tokenizer = qwen("<|endoftext|>")
    config = config_of("Qwen2", tokenizer)
    model, head = seeded(transformers.Qwen2ForCausalLM, config), head_of(32, 1)
    tensors = {**model.state_dict(), "v_head.summary.weight": head[0].weight, "v_head.summary.bias": head[0].bias}
    publish(folder, config, tensors, tokenizer, architectures=["Qwen2ForPrmModel"])
    newline = tokenizer.encode("\n")[-1]

    def scores(chain: Chain) -> NDArray[np.float64]:
        ids, flags = pieces(tokenizer, Mark(tokenizer.bos_token), chain.problem + "\n"), []
        for step in chain.steps:
            ids += [*(plain(tokenizer, step) if step else []), newline]
            flags.append(len(ids) - 1)
        states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1]
        return numbers(head(states)[0, flags, 0].sigmoid())

    return scores


def token_classifier(folder: Path) -> Reference:
    """https://huggingface.co/docs/trl/prm_trainer."""
    tokenizer = qwen("<|endoftext|>")
    model = seeded(transformers.Qwen2ForTokenClassification, config_of("Qwen2", tokenizer, num_labels=2))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)

    def scores(chain: Chain) -> NDArray[np.float64]:
        separator = tokenizer.encode("\n", add_special_tokens=False)
        ids = [tokenizer.bos_token_id, *plain(tokenizer, chain.problem)]
        ends = []
        for step in chain.steps:
            ids += plain(tokenizer, step) + separator
            ends.append(len(ids) - 1)
        return numbers(model(torch.tensor([ids])).logits[0, ends].softmax(dim=-1)[:, 1])

    return scores


def value_head(folder: Path) -> Reference:
    """A classifier of tokens with one label; two newlines behind each text, the tokenizer's own mark before all."""
    tokenizer = mistral()
    model = seeded(transformers.MistralForTokenClassification, config_of("Mistral", tokenizer, num_labels=1))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)

    def scores(chain: Chain) -> NDArray[np.float64]:
        separator = plain(tokenizer, "\n\n")
        ids, ends = [tokenizer.bos_token_id, *plain(tokenizer, chain.problem), *separator], []
        for step in chain.steps:
            ids += plain(tokenizer, step) + separator
            ends.append(len(ids) - 1)
        return numbers(model(torch.tensor([ids])).logits[0, ends, 0].sigmoid())

    return scores


def newline(folder: Path) -> Reference:
    """Ours, see infra/models/tiny24: + against - at the end of each line."""
    tokenizer = llama3()
    model = seeded(transformers.LlamaForCausalLM, config_of("Llama", tokenizer))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    candidates = [tokenizer.encode(sign)[-1] for sign in "+-"]

    def scores(chain: Chain) -> NDArray[np.float64]:
        lines = [plain(tokenizer, f"{text}\n") for text in (chain.problem, *chain.steps)]
        ends = np.cumsum([len(line) for line in lines])[1:] - 1
        logits = model(torch.tensor([[token for line in lines for token in line]])).logits
        return numbers(logits[0, ends][:, candidates].softmax(dim=-1)[:, 0])

    return scores


def orm(folder: Path, padding: int = 0) -> Reference:
    """As https://huggingface.co/Skywork/Skywork-Reward-Llama-3.1-8B: a classifier of sequences with one label, and a chat."""
    tokenizer = llama3()
    config = config_of("Llama", tokenizer, num_labels=1, pad_token_id=padding)
    model = seeded(transformers.LlamaForSequenceClassification, config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)

    def score(chain: Chain) -> Any:
        said = [("user", chain.problem.strip()), ("assistant", "\n\n".join(chain.steps).rstrip("\n").strip())]
        if not has_mark(tokenizer, chain):
            messages = [{"role": role, "content": text} for role, text in said]
            ids = tokenizer.encode(tokenizer.apply_chat_template(messages, tokenize=False), add_special_tokens=False)
        else:
            ids = llama3_ids(tokenizer, [("system", "Today is a day."), *said])
        return model(torch.tensor([ids])).logits[0, 0].sigmoid()

    return prefixes(score)


def orm_without_chat(folder: Path) -> Reference:
    """A classifier of sequences with two labels, and no chat template."""
    tokenizer = mistral()
    config = config_of("Mistral", tokenizer, num_labels=2, pad_token_id=2)
    model = seeded(transformers.MistralForSequenceClassification, config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)

    def score(chain: Chain) -> Any:
        text = chain.problem + "\n" + "\n\n".join(chain.steps).rstrip("\n")
        ids = torch.tensor([tokenizer.encode(text, split_special_tokens=True)])
        return model(ids).logits[0].softmax(dim=-1)[1]

    return prefixes(score)


def qwen_math_rm(folder: Path) -> Reference:
    """https://huggingface.co/Qwen/Qwen2.5-Math-RM-72B."""
    tokenizer = qwen()
    config = config_of("Qwen2", tokenizer)
    body, head = seeded(transformers.Qwen2Model, config), head_of(32, 32, 1)
    tensors = {f"model.{name}": tensor for name, tensor in body.state_dict().items()}
    tensors |= {f"score.{name}": tensor for name, tensor in head.state_dict().items()}
    publish(folder, config, tensors, tokenizer, architectures=["Qwen2ForRewardModel"])

    def score(chain: Chain) -> Any:
        said = [("system", "Be right."), ("user", chain.problem), ("assistant", "\n\n".join(chain.steps).rstrip("\n"))]
        if has_mark(tokenizer, chain):
            parts = [part for role, text in said for part in (IM_START, f"{role}\n{text}", IM_END, "\n")]
            ids = pieces(tokenizer, *parts)
        else:
            messages = [{"role": role, "content": text} for role, text in said[1:]]
            ids = tokenizer.encode(tokenizer.apply_chat_template(messages, tokenize=False), add_special_tokens=False)
        return head(body(torch.tensor([ids])).last_hidden_state)[0, -1, 0].sigmoid()

    return prefixes(score)


def judge(folder: Path) -> Reference:
    """A language model that is asked in a chat."""
    tokenizer = qwen()
    model = seeded(transformers.Qwen2ForCausalLM, config_of("Qwen2", tokenizer))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    words = [tokenizer.encode(word)[0] for word in ("Yes", "No")]

    def score(chain: Chain) -> Any:
        asked = asked_of(chain)
        if has_mark(tokenizer, chain):
            said = [("system", "Be right."), ("user", asked)]
            parts = [part for role, text in said for part in (IM_START, f"{role}\n{text}", IM_END, "\n")]
            ids = pieces(tokenizer, *parts, IM_START, "assistant\n")
        else:
            messages = [{"role": "user", "content": asked}]
            ids = tokenizer.encode(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        return model(torch.tensor([ids])).logits[0, -1, words].softmax(dim=-1)[0]

    return prefixes(score)


def judge_without_chat(folder: Path) -> Reference:
    """A language model that is asked in a text."""
    tokenizer = mistral()
    model = seeded(transformers.MistralForCausalLM, config_of("Mistral", tokenizer))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    words = [tokenizer.encode(word)[-1] for word in ("Yes", "No")]

    def score(chain: Chain) -> Any:
        ids = tokenizer.encode(asked_of(chain), split_special_tokens=True)
        return model(torch.tensor([ids])).logits[0, -1, words].softmax(dim=-1)[0]

    return prefixes(score)


def asked_of(chain: Chain) -> str:
    before, between, after = TEMPLATE.replace("{solution}", "{problem}").split("{problem}")
    return before + chain.problem + between + "\n\n".join(chain.steps).rstrip("\n") + after


def prefixes(score: Callable[[Chain], Any]) -> Reference:
    """The reference of a model that judges a chain as a whole: a step's score is that of the chain that ends with it."""
    return lambda chain: numbers(
        torch.stack([score(chain._replace(steps=chain.steps[:size])) for size in range(1, len(chain.steps) + 1)])
    )


REFERENCES: Mapping[str, tuple[Callable[[Path], Reference], str, tuple[str, ...]]] = {
    "qwen-math-prm": (qwen_math_prm, "", ("<extra_0>", "<|im_end|>")),
    "math-shepherd": (math_shepherd, "convention=math-shepherd", ("ки", "<s>")),
    "rlhflow": (rlhflow, "convention=rlhflow", ("<|eot_id|>", "<|start_header_id|>")),
    "skywork": (skywork, "", ("<|endoftext|>",)),
    "token-classifier": (token_classifier, "", ("<|endoftext|>",)),
    "value-head": (value_head, "separator=%0A%0A", ("</s>",)),
    "newline": (newline, "convention=newline", ("<|eot_id|>",)),
    "orm": (orm, "", ("<|eot_id|>",)),
    "orm padded with ends": (lambda folder: orm(folder, llama3().pad_token_id), "", ()),
    "orm without chat": (orm_without_chat, "", ("</s>",)),
    "orm of Qwen": (qwen_math_rm, "", ("<|im_end|>",)),
    "judge": (judge, "convention=judge", ("<|im_end|>",)),
    "judge without chat": (judge_without_chat, "convention=judge", ("</s>",)),
}
"""By name: what makes a model's folder, the options that its loading takes, and marks that its texts are tried with."""
