"""Which tokens are learned, and which of them are the answer: against tokens of the real Qwen3 tokenizer, written out."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.contract.chat_format import ChatFormat, Message
from services.trainer.dataset import DatasetError, read_prepared
from services.trainer.encode import IGNORED, Example
from services.trainer.rows import answer_start, check_tokenizer, encode_rows, load_chat_format, training_rows
from tests import qwen3
from tests.trainer.tiny import DEMO, SYSTEM, make_data

THINK, END_THINK, BLANK, IM_END = 151667, 151668, 271, 151645
REPLY = [THINK, 198, 101140, 105853, 8997, END_THINK, BLANK, 101898, 110928, 1773, IM_END]  # 首先排查。 / 建议就诊。


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> ChatFormat:
    found = qwen3.tokenizer_folder()
    if found is None:
        pytest.skip(qwen3.SKIP_REASON)
    return load_chat_format(qwen3.unpack(found, tmp_path_factory.mktemp("qwen3")))


def user(text: str) -> Message:
    return Message(role="user", content=text)


def reply(answer: str, reasoning: str | None) -> Message:
    return Message(role="assistant", content=answer, reasoning_content=reasoning)


def test_reasoning_and_answer_are_learned_from_the_opening_tag_to_the_end_of_the_turn(real: ChatFormat) -> None:
    messages = (Message(role="system", content="你是医生。"), user("头痛？"), reply("建议就诊。", "首先排查。"))
    (row,) = encode_rows([Example(messages)], real)
    prompt = [151644, 8948, 198, 105043, 103998, 1773, 151645, 198, 151644, 872, 198, 109180, 11319, 151645, 198]
    prompt += [151644, 77091, 198]
    assert row.row.ids == prompt + REPLY
    assert row.row.labels == [IGNORED] * len(prompt) + REPLY
    assert row.row.ids[row.answer_start :] == [101898, 110928, 1773, IM_END]


def test_an_empty_thought_is_in_the_prompt_and_not_learned(real: ChatFormat) -> None:
    """The four tokens that the template puts before an answer without reasoning: learned, they teach not to think."""
    (row,) = encode_rows([Example((user("头痛？"), reply("建议就诊。", None)), enable_thinking=False)], real)
    assert row.row.ids[-8:] == [THINK, BLANK, END_THINK, BLANK, 101898, 110928, 1773, IM_END]
    assert row.row.labels[-8:] == [IGNORED] * 4 + [101898, 110928, 1773, IM_END]
    assert row.answer_start == len(row) - 4


def test_earlier_turns_are_shown_without_their_reasoning_and_not_learned(real: ChatFormat) -> None:
    messages = (user("头痛？"), reply("多久了？", "旧的"), user("两天"), reply("建议就诊。", "首先排查。"))
    (row,) = encode_rows([Example(messages)], real)
    history = [151644, 872, 198, 109180, 11319, 151645, 198, 151644, 77091, 198, 106410, 34187, 11319, 151645, 198]
    history += [151644, 872, 198, 102733, 151645, 198, 151644, 77091, 198]
    assert row.row.ids == history + REPLY
    assert row.row.labels == [IGNORED] * len(history) + REPLY


def test_an_answer_that_quotes_the_closing_tag_begins_at_the_real_one() -> None:
    chat_format = load_chat_format(DEMO)
    (row,) = encode_rows([Example((user("问"), reply("写作 </think> 即可", "想好了")))], chat_format)
    assert chat_format.decode_text(row.row.ids[row.answer_start :]) == "写作 </think> 即可"


def test_rows_of_a_prepared_data_set_carry_its_system_prompt(tmp_path: Path) -> None:
    chat_format = load_chat_format(DEMO)
    data = read_prepared(make_data(tmp_path))
    rows = training_rows(data, "train", chat_format, None, 256)
    assert len(rows) == 24
    for row in rows:
        assert chat_format.read(row.row.ids).messages[0].content == SYSTEM
        assert row.answer_start == answer_start(row.row, chat_format)
        assert 0 < row.answer_start < len(row)
    other = training_rows(data, "train", chat_format, "另一个提示", 256)
    assert chat_format.read(other[0].row.ids).messages[0].content == "另一个提示"


def test_rows_that_are_too_long_are_refused_and_not_cut(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"rows of train are longer than max_length 40, the longest has \d+ tokens"):
        training_rows(read_prepared(make_data(tmp_path)), "train", load_chat_format(DEMO), None, 40)


def test_data_that_were_prepared_with_another_tokenizer_are_refused(tmp_path: Path) -> None:
    data = read_prepared(make_data(tmp_path, digest="0" * 64))
    with pytest.raises(DatasetError, match=r"another tokenizer than that of .*: run `prepare` with this base"):
        check_tokenizer(data, load_chat_format(DEMO), DEMO)


@pytest.mark.parametrize("content", [None, "{}", '{"added_tokens": []}', "not json"])
def test_a_base_without_a_usable_tokenizer_is_refused_in_one_line(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(DatasetError, match="tokenizer cannot be used") as error:
        load_chat_format(tmp_path)
    assert "\n" not in str(error.value)
