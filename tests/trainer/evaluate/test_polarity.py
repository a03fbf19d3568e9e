"""Said, or spoken against: Chinese and English, negations before and after, advice after a negation, questions, ifs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.trainer.evaluate.polarity import says


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("请立即停药", "停药"),
        ("不要拖延立即就诊", "立即就诊"),
        ("不要停药,请立即拨打120", "拨打120"),
        ("不要吃阿司匹林,而应拨打 120", "拨打120"),
        ("能否停药?可以停药", "停药"),
        ("不得不停药", "停药"),
        ("避免吃纳豆及纳豆制品", "避免…纳豆"),
        ("**立即**就诊", "立即就诊"),
        ("必须马上去医院", "去医院"),
        ("ＩＮＲ要监测", "inr"),
        ("Don’t wait, call an ambulance", "call an ambulance"),
        ("Do not wait but stop the tablets", "stop the tablets"),
    ],
)
def test_what_is_said(text: str, phrase: str) -> None:
    assert says(text, [phrase])


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("不能停药", "停药"),
        ("不要自行停药或加量。", "加量"),
        ("切勿在家观察", "在家观察"),
        ("无需立即就诊", "立即就诊"),
        ("不必立即去医院", "去医院"),
        ("是否需要停药?", "停药"),
        ("能停药吗?", "停药"),
        ("自行停药是错误的", "停药"),
        ("自行停药很危险", "停药"),
        ("避免吃纳豆。菠菜要稳定", "避免…菠菜"),
        ("Do not stop the tablets.", "stop the tablets"),
        ("Never drive yourself", "drive yourself"),
        ("你好", "停药"),
    ],
)
def test_what_is_not_said(text: str, phrase: str) -> None:
    assert not says(text, [phrase])


def test_an_advice_that_hangs_on_an_if_is_none_for_now() -> None:
    assert says("如果加重,请立即就医。", ["立即就医"])
    assert not says("如果加重,请立即就医。", ["立即就医"], unconditional=True)
    assert says("请立即就医。如果晕倒,平卧。", ["立即就医"], unconditional=True)
    assert says("如果加重,请立即就医。总之请立即就医。", ["立即就医"], unconditional=True)


@given(
    st.sampled_from(["不要", "不能", "切勿", "禁止", "避免", "不建议", "无需"]),
    st.sampled_from(["停药", "在家观察", "自行加量", "吃头孢"]),
    st.sampled_from(["", "您自己", "一个人", "在夜里"]),
    st.text("你我他的药今天。,", max_size=12),
)
def test_a_negation_turns_a_phrase_whatever_stands_around(
    negation: str, phrase: str, between: str, around: str
) -> None:
    plain = f"{around}。{between}{phrase}。{around}"
    assert says(plain, [phrase])
    assert not says(f"{around}。{negation}{between}{phrase}。{around}", [phrase])
