"""The same few questions to the model before and after training: the numbers must be finite and must have moved, and
where the model kept to the thinking format before, it must keep to it after.

Runs with transformers and peft, greedily, on the CPU or a GPU that torch sees. It is no measure of quality: `answer`,
`blind` and `score` are. Needs torch, which is imported when it is called.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from services.contract.adapter_files import AdapterError
from services.contract.chat_format import END_OF_TEXT, END_THINK, IM_END, THINK, ChatFormat, Message

QUESTIONS = (
    "孩子发烧在家怎么护理？",
    "高血压平时要注意什么？",
    "What can I do at home for a common cold?",
    "明天会下雨吗？",
)
MAX_NEW_TOKENS = 256
SMALLEST_CHANGE = 1e-4  # of a logit; below it no answer changes: bf16 tells apart steps of about 0.03 near 10
_LOOP_TOKENS, _LONGEST_PERIOD = 64, 16

Format = Literal["kept", "open", "broken"]


@dataclass(frozen=True)
class Replies:
    """What one model said: greedy ids to each question, and the logits after each prompt, shape (questions, vocabulary)."""

    ids: list[list[int]]
    logits: Any


@dataclass(frozen=True)
class Report:
    """What the canary found; `format_*` count questions answered in the thinking format, or still thinking at the limit."""

    questions: int
    largest_logit_change: float
    format_before: int
    format_after: int

    def as_metrics(self) -> dict[str, Any]:
        return {"canary": dict(vars(self))}


def try_adapter(
    base: Path,
    adapter: Path,
    chat_format: ChatFormat,
    system_prompt: str | None,
    say: Callable[[str], None] = lambda text: None,
) -> Report:
    """Base against base with adapter. Raises `AdapterError` for a reason not to publish it."""
    with _explained(adapter):
        from peft import PeftModel

        say("loading the base model")
        model = PeftModel.from_pretrained(_load(base), str(adapter)).eval()
        say("asking the base model")
        with model.disable_adapter():
            before = _ask(model, chat_format, system_prompt)
        say("asking it with the adapter")
        after = _ask(model, chat_format, system_prompt)
    return compare(before, after, chat_format)


def try_model(
    base: Path,
    tuned: Path,
    chat_format: ChatFormat,
    system_prompt: str | None,
    say: Callable[[str], None] = lambda text: None,
) -> Report:
    """Base against a full fine-tune of it, one after the other in memory. Raises `AdapterError`."""
    with _explained(tuned):
        say("asking the base model")
        before = _ask(_load(base), chat_format, system_prompt)
        gc.collect()  # the base model's memory, before the next is loaded
        say("asking the trained model")
        after = _ask(_load(tuned), chat_format, system_prompt)
    return compare(before, after, chat_format)


def compare(before: Replies, after: Replies, chat_format: ChatFormat) -> Report:
    """Raises `AdapterError` unless `after` is finite, differs from `before`, and keeps the format where `before` did."""
    if not bool(before.logits.isfinite().all()):
        raise AdapterError("the base model itself gives NaN or infinity: its files are damaged, fetch it again")
    if not bool(after.logits.isfinite().all()):
        raise AdapterError("it makes the model give NaN or infinity: train again at a lower rate")
    change = float((after.logits - before.logits).abs().max())
    if change < SMALLEST_CHANGE:
        raise AdapterError(
            f"it changes nothing (largest change of a logit: {change:.1e}): was it trained, and on this base?"
        )
    kept_before = [judge_format(ids, chat_format) for ids in before.ids]
    kept_after = [judge_format(ids, chat_format) for ids in after.ids]
    lost = [i for i, now in enumerate(kept_after) if now == "broken" and kept_before[i] != "broken"]
    if lost:
        raise AdapterError(
            f"it breaks the thinking format on {len(lost)} of {len(QUESTIONS)} questions, the first {QUESTIONS[lost[0]]!r}: "
            "train on dialogues with reasoning, for fewer steps or at a lower rate"
        )
    return Report(len(QUESTIONS), change, *(sum(f != "broken" for f in found) for found in (kept_before, kept_after)))


def judge_format(ids: Sequence[int], chat_format: ChatFormat) -> Format:
    """Whether a reply is one thought, then one answer, then the end of the turn.

    `open` is a reply that was cut off on a good way. One that repeats itself to the limit is broken.
    """
    control = chat_format.control_ids
    ended = bool(ids) and ids[-1] in (control[IM_END], control[END_OF_TEXT])
    frame = [i for i in ids if i in control.values()]
    wanted = [control[THINK], control[END_THINK], control[IM_END]]
    if list(ids[:1]) != wanted[:1] or frame != wanted[: len(frame)] or (ended and frame != wanted):
        return "broken"
    reply = chat_format.read_reply(ids)
    if ended:
        return "kept" if (reply.reasoning_content or "").strip() and reply.content.strip() else "broken"
    return "broken" if _is_loop(ids) else "open"


def _is_loop(ids: Sequence[int]) -> bool:
    tail = list(ids[-_LOOP_TOKENS:])
    return len(tail) == _LOOP_TOKENS and any(tail[n:] == tail[:-n] for n in range(1, _LONGEST_PERIOD + 1))


def _load(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=dtype, local_files_only=True)
    model.generation_config = GenerationConfig()  # greedy: the model's own temperature is none of our business
    return model.to(device).eval()


def _ask(model: Any, chat_format: ChatFormat, system_prompt: str | None) -> Replies:
    """All questions in one batch, padded on the left, so that a large model on a CPU reads its weights once a token."""
    import torch

    opening = [Message(role="system", content=system_prompt)] if system_prompt else []
    prompts = [chat_format.write_prompt([*opening, Message(role="user", content=question)]) for question in QUESTIONS]
    ends = [chat_format.control_ids[IM_END], chat_format.control_ids[END_OF_TEXT]]
    width = max(map(len, prompts))
    ids = torch.tensor([[ends[1]] * (width - len(prompt)) + prompt for prompt in prompts], device=model.device)
    real = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    with torch.inference_mode():
        made = model.generate(
            input_ids=ids,
            attention_mask=real,
            do_sample=False,
            max_new_tokens=MAX_NEW_TOKENS,
            eos_token_id=ends,
            pad_token_id=ends[1],
            output_logits=True,
            return_dict_in_generate=True,
        )
    replies = made.sequences[:, width:].tolist()
    return Replies([_until_end(reply, ends) for reply in replies], made.logits[0].float().cpu())


def _until_end(reply: list[int], ends: Sequence[int]) -> list[int]:
    first = next((n for n, i in enumerate(reply) if i in ends), len(reply))
    return reply[: first + 1]


@contextlib.contextmanager
def _explained(result: Path) -> Iterator[None]:
    """Turns what transformers, peft and safetensors raise into one line."""
    try:
        yield
    except AdapterError:
        raise
    except ImportError as error:
        raise AdapterError(
            f"the canary needs {error.name}: install the trainer's requirements, or say --no-canary"
        ) from error
    except MemoryError as error:
        raise AdapterError("the canary has not enough memory: use a larger machine, or say --no-canary") from error
    except Exception as error:  # three libraries with exceptions of their own, and files that anybody may have written
        cause = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise AdapterError(f"the canary cannot run {result.name} on the base model ({cause}): look at both") from error
