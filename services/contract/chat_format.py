"""The one writer and reader of Qwen3's turns and `<think>` framing, on token ids.

Writes what Qwen3's own chat template writes, id for id, with one difference on purpose: control tokens come from here
alone. The template renders to one string and lets the tokenizer find control tokens in it, so a user who types
`<|im_end|>` ends the turn. Here text is encoded by a tokenizer that knows no control tokens, so quoted markers stay text.

A turn's ids do not depend on its neighbours (control tokens are hard borders), so they can be stored and concatenated.
The reader inverts the writer for text in Unicode NFC, which is what Qwen3's tokenizer normalises to.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict

Role = Literal["system", "user", "assistant", "tool"]

IM_START, IM_END, END_OF_TEXT = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
THINK, END_THINK = "<think>", "</think>"
TOOL_CALL, END_TOOL_CALL = "<tool_call>", "</tool_call>"
TOOL_RESPONSE, END_TOOL_RESPONSE = "<tool_response>", "</tool_response>"
CONTROL_TOKENS = (
    IM_START, IM_END, END_OF_TEXT, THINK, END_THINK,
    TOOL_CALL, END_TOOL_CALL, TOOL_RESPONSE, END_TOOL_RESPONSE,
)  # fmt: skip

# Markers for clients that see only `content` (the founding article's program). A presentation: never shown to the model.
REASONING_BEGIN, REASONING_END, ANSWER_BEGIN = "<|ReasoningBegin|>", "<|ReasoningEnd|>", "<|AnswerBegin|>"

# The template's words around tool signatures; `<tool_call>` tags in them are control tokens in the template's rendering too.
_TOOLS_HEAD = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
_TOOLS_MIDDLE = "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
_TOOLS_EXAMPLE = '\n{"name": <function-name>, "arguments": <args-json-object>}\n'

FORMAT_VERSION = "qwen3-chatml-1"

# What the service says to the model, and the trainer trains with, where nobody says anything else.
DEFAULT_SYSTEM_PROMPT = "你是一名严谨的医疗AI助手,所有回答必须基于循证医学,不确定时明确告知。"


class ToolCall(BaseModel):
    """One call that the assistant asks for; `arguments` is JSON text, as in OpenAI's API."""

    model_config = ConfigDict(frozen=True)
    name: str
    arguments: str


class Message(BaseModel):
    """One turn. `content` of an assistant is the answer only; its reasoning stands apart."""

    model_config = ConfigDict(frozen=True)
    role: Role
    content: str = ""
    reasoning_content: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()


class Conversation(BaseModel):
    """What `ChatFormat.read` finds: the tools offered, the turns, and whether the last turn was closed."""

    model_config = ConfigDict(frozen=True)
    tools: tuple[dict[str, Any], ...] = ()
    messages: tuple[Message, ...] = ()
    complete: bool = True


class Encoding(Protocol):
    @property
    def ids(self) -> list[int]: ...


class Backend(Protocol):
    """The part of `tokenizers.Tokenizer` that is used here."""

    def encode(self, sequence: str, *, add_special_tokens: bool = ...) -> Encoding: ...
    def decode(self, ids: Sequence[int], skip_special_tokens: bool = ...) -> str: ...


class ChatFormatError(ValueError):
    """Ids that no writer of this format has produced, or a tokenizer without the control tokens."""


def template_json(value: Any) -> str:
    """JSON as transformers' chat templates print it (`tojson` there keeps non-ASCII characters and key order)."""
    return json.dumps(value, ensure_ascii=False)


def strip_framing(text: str) -> tuple[str | None, str]:
    """Splits an assistant text that a client sends back into (reasoning, answer).

    Knows the inline `<think>` form, by the template's own rule, and the article's markers. A text without either is all
    answer, with `None` for the reasoning. Half a frame (a cut-off reply) is reasoning without an answer.
    """
    if REASONING_BEGIN in text or ANSWER_BEGIN in text:
        before, begun, after = text.partition(ANSWER_BEGIN)
        if not begun:
            before, _, after = text.partition(REASONING_END)
        reasoning = before.replace(REASONING_BEGIN, "").replace(REASONING_END, "").strip("\n")
        return reasoning, after.strip("\n")
    if END_THINK in text:
        reasoning = text.split(END_THINK)[0].rstrip("\n").split(THINK)[-1].lstrip("\n")
        return reasoning, text.split(END_THINK)[-1].lstrip("\n")
    if text.lstrip().startswith(THINK):
        return text.lstrip()[len(THINK) :].strip("\n"), ""
    return None, text


class ChatFormat:
    """Turns to ids and back, for one tokenizer.

    >>> ids = chat_format.write_prompt([Message(role="user", content="你好")])
    >>> chat_format.read(ids).messages[0].content
    '你好'
    """

    def __init__(self, backend: Backend, control_ids: dict[str, int], digest: str) -> None:
        """`backend` must know no control tokens; `control_ids` gives theirs; use `load` rather than this."""
        missing = [token for token in CONTROL_TOKENS if token not in control_ids]
        if missing:
            raise ChatFormatError(f"the tokenizer lacks Qwen3's control tokens {' '.join(missing)}")
        self.backend = backend
        self.control_ids = {token: control_ids[token] for token in CONTROL_TOKENS}
        self._control_names = {i: token for token, i in self.control_ids.items()}
        self.digest = digest
        self._newline = self.encode_text("\n")

    @classmethod
    def load(cls, model_dir: Path, from_json: Callable[[str], Backend]) -> ChatFormat:
        """Reads `tokenizer.json` of a model directory; `from_json` is `tokenizers.Tokenizer.from_str`.

        Raises `ChatFormatError` when the file is missing, broken, or not a Qwen3 tokenizer.
        """
        path = Path(model_dir) / "tokenizer.json"
        try:
            text = path.read_text(encoding="utf-8")
            spec = json.loads(text)
            control = {token["content"]: int(token["id"]) for token in spec["added_tokens"]}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ChatFormatError(f"cannot read {path}: {error}") from error
        try:
            plain = from_json(json.dumps({**spec, "added_tokens": []}, ensure_ascii=False))
        except Exception as error:
            raise ChatFormatError(f"{path} is no tokenizer: {str(error).splitlines()[0][:200]}") from error
        digest = hashlib.sha256((FORMAT_VERSION + text).encode()).hexdigest()
        return cls(plain, control, digest)

    # Text

    def encode_text(self, text: str) -> list[int]:
        """Ids of `text`, none of them a control token."""
        return self.backend.encode(text, add_special_tokens=False).ids if text else []

    def decode_text(self, ids: Sequence[int]) -> str:
        """Text of ids; control tokens, if any, are left out."""
        plain = [i for i in ids if i not in self._control_names]
        return self.backend.decode(plain, skip_special_tokens=False) if plain else ""

    # Writing

    def write_prompt(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = (), enable_thinking: bool = True
    ) -> list[int]:
        """Ids of a conversation up to the point where the model writes its reply."""
        return self.write(messages, tools) + self.write_reply_opening(enable_thinking)

    def write_reply_opening(self, enable_thinking: bool = True) -> list[int]:
        """The generation prompt. With thinking off it holds an empty thought, so the model goes on with the answer."""
        opening: list[str | int] = [self.control_ids[IM_START], "assistant\n"]
        if not enable_thinking:
            opening += [self.control_ids[THINK], "\n\n", self.control_ids[END_THINK], "\n\n"]
        return self._encode(opening)

    def write(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = ()) -> list[int]:
        """Ids of closed turns. Reasoning is written only after the last user turn, as Qwen3's template does."""
        last_query = max((i for i, m in enumerate(messages) if m.role == "user"), default=len(messages) - 1)
        ids: list[int] = []
        rest = list(enumerate(messages))
        if tools:
            system = rest.pop(0)[1].content if messages and messages[0].role == "system" else None
            ids += self.write_system_with_tools(system, tools)
        for i, message in rest:
            if message.role == "tool":
                first = i == 0 or messages[i - 1].role != "tool"
                last = i == len(messages) - 1 or messages[i + 1].role != "tool"
                ids += self._write_tool_response(message.content, first, last)
            else:
                is_last = i == len(messages) - 1
                with_reasoning = i > last_query and (is_last or bool(message.reasoning_content))
                ids += self.write_turn(message, with_reasoning)
        return ids

    def write_turn(self, message: Message, with_reasoning: bool = False) -> list[int]:
        """Ids of one closed system, user or assistant turn, the newline after it included."""
        parts: list[str | int] = [self.control_ids[IM_START], f"{message.role}\n"]
        if message.role == "assistant":
            parts += self._reply_parts(message, with_reasoning)
        else:
            parts.append(message.content)
        return self._encode([*parts, self.control_ids[IM_END]]) + self._newline

    def write_reply(self, message: Message, with_reasoning: bool = True) -> list[int]:
        """What the model itself writes for this turn, `<|im_end|>` included: the supervised ids of training."""
        return self._encode([*self._reply_parts(message, with_reasoning), self.control_ids[IM_END]])

    def write_system_with_tools(self, system: str | None, tools: Sequence[dict[str, Any]]) -> list[int]:
        """The system turn that offers tools."""
        head = (system + "\n\n" if system is not None else "") + _TOOLS_HEAD
        signatures = "".join("\n" + template_json(tool) for tool in tools)
        call, end_call = self.control_ids[TOOL_CALL], self.control_ids[END_TOOL_CALL]
        parts: list[str | int] = [self.control_ids[IM_START], "system\n" + head + signatures + _TOOLS_MIDDLE, call]
        parts += [end_call, " XML tags:\n", call, _TOOLS_EXAMPLE, end_call, self.control_ids[IM_END]]
        return self._encode(parts) + self._newline

    def _reply_parts(self, message: Message, with_reasoning: bool) -> list[str | int]:
        parts: list[str | int] = []
        content = message.content
        if with_reasoning:
            reasoning = (message.reasoning_content or "").strip("\n")
            content = content.lstrip("\n")
            parts += [self.control_ids[THINK], f"\n{reasoning}\n", self.control_ids[END_THINK], "\n\n"]
        parts.append(content)
        for i, call in enumerate(message.tool_calls):
            if i or message.content:
                parts.append("\n")
            body = f'\n{{"name": "{call.name}", "arguments": {call.arguments}}}\n'
            parts += [self.control_ids[TOOL_CALL], body, self.control_ids[END_TOOL_CALL]]
        return parts

    def _write_tool_response(self, content: str, first: bool, last: bool) -> list[int]:
        parts: list[str | int] = [self.control_ids[IM_START], "user"] if first else []
        parts += ["\n", self.control_ids[TOOL_RESPONSE], f"\n{content}\n", self.control_ids[END_TOOL_RESPONSE]]
        ids = self._encode(parts)
        return [*ids, self.control_ids[IM_END], *self._newline] if last else ids

    def _encode(self, parts: Iterable[str | int]) -> list[int]:
        """Joins neighbouring texts before encoding them: BPE merges across their border, as in the template's string."""
        ids: list[int] = []
        text = ""
        for part in parts:
            if isinstance(part, str):
                text += part
            else:
                ids += self.encode_text(text)
                ids.append(part)
                text = ""
        return ids + self.encode_text(text)

    # Reading

    def read_reply(self, ids: Sequence[int]) -> Message:
        """What the model wrote after the generation prompt; a cut-off thought is reasoning with an empty answer."""
        end = self.control_ids[IM_END]
        body = list(ids)[: list(ids).index(end)] if end in ids else list(ids)
        return self._read_assistant(body)

    def read(self, ids: Sequence[int]) -> Conversation:
        """Inverts `write` and `write_prompt` (whose open last turn comes back as an empty assistant turn, not complete).

        Raises `ChatFormatError` when the ids are not turns of this format.
        """
        messages: list[Message] = []
        tools: tuple[dict[str, Any], ...] = ()
        complete = True
        for body, closed in self._turns(ids):
            complete = closed
            role, rest = self._split_role(body)
            if role == "assistant":
                messages.append(self._read_assistant(rest))
            elif self.control_ids[TOOL_RESPONSE] in rest:
                messages += self._read_tool_responses(rest)
            elif role == "system" and self.control_ids[TOOL_CALL] in rest:
                system, tools = self._read_tools(rest)
                messages += [Message(role="system", content=system)] if system is not None else []
            elif role in ("system", "user"):
                messages.append(Message.model_validate({"role": role, "content": self.decode_text(rest)}))
            else:
                raise ChatFormatError(f"a turn of an unknown role: {role[:40]!r}")
        return Conversation(tools=tools, messages=tuple(messages), complete=complete)

    def _turns(self, ids: Sequence[int]) -> Iterator[tuple[list[int], bool]]:
        start, end = self.control_ids[IM_START], self.control_ids[IM_END]
        body: list[int] | None = None
        for i in ids:
            if i == start:
                body = []
            elif i == end and body is not None:
                yield body, True
                body = None
            elif body is not None:
                body.append(i)
            elif [i] != self._newline:
                raise ChatFormatError(f"token {i} stands outside a turn")
        if body is not None:
            yield body, False

    def _split_role(self, body: list[int]) -> tuple[str, list[int]]:
        """Role and the rest. Encoding again after the cut is not needed: the rest is only decoded."""
        head = next((n for n, i in enumerate(body) if i in self._control_names), len(body))
        role, newline, first_text = self.decode_text(body[:head]).partition("\n")
        if not newline:
            raise ChatFormatError("a turn without a role line")
        return role, self.encode_text(first_text) + body[head:]

    def _read_assistant(self, body: list[int]) -> Message:
        think, end_think = self.control_ids[THINK], self.control_ids[END_THINK]
        reasoning: str | None = None
        if body[:1] == [think] or end_think in body:
            cut = body.index(end_think) if end_think in body else len(body)
            reasoning = self.decode_text(body[:cut]).strip("\n")
            body = body[cut + 1 :]
        text, calls = self._read_tool_calls(body)
        if reasoning is not None:
            text = text.lstrip("\n")
        return Message(role="assistant", content=text, reasoning_content=reasoning, tool_calls=calls)

    def _read_tool_calls(self, body: list[int]) -> tuple[str, tuple[ToolCall, ...]]:
        chunks = self._between(body, self.control_ids[TOOL_CALL], self.control_ids[END_TOOL_CALL])
        if not chunks:
            return self.decode_text(body), ()
        text = self.decode_text(body[: body.index(self.control_ids[TOOL_CALL])])
        calls = tuple(read_tool_call(self.decode_text(chunk)) for chunk in chunks)
        return text.removesuffix("\n"), calls

    def _read_tool_responses(self, body: list[int]) -> list[Message]:
        chunks = self._between(body, self.control_ids[TOOL_RESPONSE], self.control_ids[END_TOOL_RESPONSE])
        texts = [self.decode_text(chunk) for chunk in chunks]
        return [Message(role="tool", content=text.removeprefix("\n").removesuffix("\n")) for text in texts]

    def _read_tools(self, body: list[int]) -> tuple[str | None, tuple[dict[str, Any], ...]]:
        head = self.decode_text(body[: body.index(self.control_ids[TOOL_CALL])])
        before, found, signatures = head.rpartition(_TOOLS_HEAD)
        if not found:
            raise ChatFormatError("a system turn with a tool call but no tools")
        lines = signatures.removesuffix(_TOOLS_MIDDLE).strip("\n").split("\n")
        system = before.removesuffix("\n\n") if before else None
        return system, tuple(json.loads(line) for line in lines if line)

    @staticmethod
    def _between(body: list[int], begin: int, end: int) -> list[list[int]]:
        chunks: list[list[int]] = []
        inside: list[int] | None = None
        for i in body:
            if i == begin:
                inside = []
            elif i == end and inside is not None:
                chunks.append(inside)
                inside = None
            elif inside is not None:
                inside.append(i)
        return chunks


_TOOL_CALL_FORM = re.compile(r'\s*\{"name": "([^"\\]+)", "arguments": (.*)\}\s*', re.DOTALL)


def read_tool_call(text: str) -> ToolCall:
    """One call in Hermes form, `{"name": ..., "arguments": {...}}`; raises `ChatFormatError` when it is not one."""
    form = _TOOL_CALL_FORM.fullmatch(text)
    if form:  # keeps the arguments' own spelling
        return ToolCall(name=form[1], arguments=form[2])
    try:
        call = json.loads(text)
        return ToolCall(name=call["name"], arguments=template_json(call.get("arguments", {})))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ChatFormatError(f"not a tool call: {text[:80]!r}") from error
