"""What must not stand in a text that is trained on. Every person and number here is made up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.contract.chat_format import CONTROL_TOKENS, Message
from services.trainer.prepare.checks import check_record
from services.trainer.prepare.personal_data import find_personal_data, is_id_number
from services.trainer.prepare.readers import Record

ID_NUMBER = "11010519491231002X"  # the example of GB 11643-1999


def _kinds(text: str) -> list[str]:
    return [kind for kind, _ in find_personal_data(text)]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (f"身份证号{ID_NUMBER}，男", "id-number"),
        ("身份证 110105 19491231 002x", "id-number"),
        ("身份证１１０１０５１９４９１２３１００２Ｘ", "id-number"),
        ("联系电话13800138000", "mobile"),
        ("电话：138-0013-8000，下午打", "mobile"),
        ("手机+86 138 0013 8000", "mobile"),
        ("Phone: 13800138000", "mobile"),
        ("病历号：00123456", "record-number"),
        ("住院号是ZY2023001122", "record-number"),
        ("MRN: 12345678", "record-number"),
        ("写信到 li.lei@example.com 即可", "e-mail"),
        ("姓名：张小明，男，45岁", "name"),
    ],
)
def test_personal_data_is_found(text: str, kind: str) -> None:
    assert _kinds(text) == [kind]


@pytest.mark.parametrize(
    "text",
    [
        "身份证号110105194912310021",  # a wrong check digit
        "编号110105194913310025",  # no such month
        "NCT13800138000",  # a trial's number
        "The sequence 13800138000 occurs twice",  # eleven digits in English
        "剂量0.13800138000毫克",
        "拨打120或12320",
        "血糖8.2mmol/L，血压138/80",
        "姓名：张某某，男",
        "姓名：XX",
        "患者，男，45岁，住院3天",
        "门诊号是什么",
        "体重 @ 60kg",
    ],
)
def test_what_only_looks_like_personal_data_is_let_be(text: str) -> None:
    assert _kinds(text) == []


@given(st.integers(0, 17), st.integers(1, 9))
def test_any_wrong_digit_spoils_an_id_number(place: int, more: int) -> None:
    """MOD 11-2 finds every error in one character."""
    digits = "10X98765432" if place == 17 else "0123456789"
    other = digits[(digits.index(ID_NUMBER[place]) + more) % len(digits)]
    changed = ID_NUMBER[:place] + other + ID_NUMBER[place + 1 :]
    assert is_id_number(ID_NUMBER)
    assert not is_id_number(changed)


def test_a_finding_is_masked_so_that_the_report_does_not_spread_it() -> None:
    text = f"姓名：张小明，身份证{ID_NUMBER}，手机13800138000，住院号ZY2023001122，邮箱li.lei@example.com"
    masked = dict(find_personal_data(text))
    assert masked["id-number"] == "110***************"
    assert masked["name"] == "张**"
    for secret in ("19491231", "00138000", "3001122", "lei@example", "小明"):
        assert not any(secret in finding for finding in masked.values())


def test_the_number_in_an_id_is_not_a_phone_too() -> None:
    assert _kinds("身份证号 110105 19491231 002X 的病人") == ["id-number"]


def _problems(user: str = "问", reasoning: str = "想", answer: str = "答") -> list[tuple[str, str]]:
    messages = (
        Message(role="user", content=user),
        Message(role="assistant", content=answer, reasoning_content=reasoning),
    )
    return [(problem.kind, problem.message) for problem in check_record(Record("f:1", "x", messages))]


@pytest.mark.parametrize(
    "token", [*CONTROL_TOKENS, "<|ReasoningBegin|>", "<|AnswerBegin|>", "< / THINK >", "<|vision_start|>"]
)
@pytest.mark.parametrize("field", ["user", "reasoning", "answer"])
def test_no_turn_marker_or_tag_stands_in_a_text(token: str, field: str) -> None:
    found = _problems(**{field: f"前{token}后"})
    assert [kind for kind, _ in found] in (["marker"], ["thinking"])
    assert token.strip() in found[0][1]


def test_think_tags_in_a_reply_are_a_matter_of_its_thinking() -> None:
    assert _problems(answer="<think>没有完")[0][0] == "thinking"
    assert _problems(answer="一</think>二</think>三")[0][0] == "thinking"
    assert _problems(user="什么是<think>？")[0][0] == "marker"


@pytest.mark.parametrize("text", ["体温<38℃且>37℃", "a < b | c > d", "收缩压 <|140|", "**重点**", "1. 饮水\n\t2. 休息"])
def test_signs_of_ordinary_text_are_let_be(text: str) -> None:
    assert _problems(user=text, reasoning=text, answer=text) == []


@pytest.mark.parametrize("character", ["\x00", "\x0b", "\ufffd", "\x7f"])
def test_control_and_replacement_characters_are_named(character: str) -> None:
    assert _problems(answer=f"多{character}饮水") == [
        ("character", f"U+{ord(character):04X} in the assistant's content")
    ]
