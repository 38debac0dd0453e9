"""Small tokenizers of the kinds that reward models have, as transformers saves them."""

import json
from functools import cache
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

transformers = pytest.importorskip("transformers", reason="the reference is transformers: pip install -e '.[dev]'")

# What the trainers count pairs in; merges across digits, signs and white space are what segments could get wrong.
CORPUS = [
    "Janet's ducks lay 16 eggs per day. She eats three for breakfast every morning.",
    "Step 1: 16 - 3 = 13 eggs are left. Step 2: 13 - 4 = 9. The answer is: 18 + 0 - 0",
    "user assistant system Please reason step by step, and put your final answer within \\boxed{}.",
    "Problem: Solution so far: Is every step of this solution right so far? Answer with one word, Yes or No. Yes No Yes No",
    "\n\n\n\n \n\n  \n Then\n\nthe\nsteps\n\nare\n separated\r\n by  lines.\n\n",
    "Größe, naïve, 数学 数学, ки ки ки ки ки, Штаны ки, 🦆🦆",
] * 4

# As Qwen2 and Llama 3 split words: runs of letters with what is before them, digits, signs with newlines behind, white space.
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,%d}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

CHATML = (
    "{% for m in messages %}"
    "{% if loop.first and m.role != 'system' %}<|im_start|>system\nBe right.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}"
    "<|start_header_id|>system<|end_header_id|>\n\nToday is a day.<|eot_id|>"
    "{% for m in messages %}"
    "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


def _byte_level(digits: int, marks: list[str]) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS % digits), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, special_tokens=marks, show_progress=False)
    made.train_from_iterator(CORPUS, trainer)
    return made


@cache
def qwen(bos: str | None = None) -> Any:
    """Of Qwen2: byte-level, composed characters, no mark at the start of a text unless one is given."""
    made = _byte_level(1, ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<extra_0>"])
    made.normalizer = normalizers.NFC()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, chat_template=CHATML, bos_token=bos, pad_token="<|endoftext|>", eos_token="<|im_end|>"
    )


@cache
def llama3() -> Any:
    """Of Llama 3: byte-level, numbers of up to three digits, turns with headers."""
    made = _byte_level(3, ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"])
    bos = ("<|begin_of_text|>", made.token_to_id("<|begin_of_text|>"))
    made.post_processor = processors.TemplateProcessing(single=f"{bos[0]} $A", special_tokens=[bos])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, chat_template=LLAMA3, bos_token=bos[0], eos_token="<|eot_id|>", pad_token="<|eot_id|>"
    )


INSTRUCT = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]"
    "{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)


@cache
def mistral(instruct: bool = False) -> Any:
    """Of Llama 2 and Mistral: no words before merging, spaces as letters, bytes for what it lacks, newline among them.

    The instruct kind, of later versions, has marks around what a user says, and a space before the first word of a text alone.
    """
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.Metaspace()
    texts = [" ".join(text.split()) for text in CORPUS]
    words.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=400, show_progress=False))
    learned = json.loads(words.to_str())["model"]
    marks = ["<unk>", "<s>", "</s>", *(["[INST]", "[/INST]"] if instruct else [])]
    pieces = [*marks, *(f"<0x{byte:02X}>" for byte in range(256)), "▁▁", *sorted(learned["vocab"], key=learned["vocab"].get)]
    merges = [("▁", "▁"), *map(tuple, learned["merges"])]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    made = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if instruct:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks])
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, chat_template=INSTRUCT if instruct else None, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def plain(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a text in which there is no mark, whatever it looks like."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
    return ids


class Mark(str):
    """A mark of a tokenizer's, where it is one and no text that looks like it."""

    __slots__ = ()


def pieces(tokenizer: Any, *parts: str) -> list[int]:
    """The tokens of marks and of the texts between them."""
    marks = tokenizer.get_added_vocab()
    return [token for part in parts for token in ([marks[part]] if isinstance(part, Mark) else plain(tokenizer, part))]
