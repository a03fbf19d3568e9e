"""Text of single ids against the tokenizer's own decoding."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from services.api.thinking.token_text import TokenTexts, byte_alphabet
from services.contract.chat_format import CONTROL_TOKENS, THINK, ChatFormat
from tests.fakes import Pen


@given(text=st.text(max_size=60))
@example(text="👨‍👩‍👧‍👦 🩺 é à 血压 180/110 mmHg\n\t≥")
def test_text_that_grows_token_by_token_is_the_text_decoded_whole(texts: TokenTexts, pen: Pen, text) -> None:
    ids = pen.text(text)
    detokenizer = texts.detokenizer()
    assert "".join(detokenizer.step(i) for i in ids) == pen.chat_format.decode_text(ids)


@given(ids=st.lists(st.integers(0, 6000), max_size=12))
def test_ids_in_any_order_never_break_the_detokenizer(texts: TokenTexts, pen: Pen, ids) -> None:
    """A model may sample half a character and go on with something else: a replacement character, as everywhere else."""
    detokenizer = texts.detokenizer()
    grown = "".join(detokenizer.step(i) for i in ids)
    raw = b"".join(texts.raw(i) for i in ids)
    assert raw.decode("utf-8", "replace").startswith(grown)


def test_a_character_appears_with_the_token_that_completes_it(texts: TokenTexts, pen: Pen) -> None:
    ids = pen.text("🩺")
    detokenizer = texts.detokenizer()
    assert [detokenizer.step(i) for i in ids] == [*[""] * (len(ids) - 1), "🩺"]


def test_bytes_of_the_ids_are_the_bytes_of_the_text(texts: TokenTexts, pen: Pen) -> None:
    text = "NT-proBNP ≥ 300 pg/mL，👩‍⚕️"
    assert b"".join(texts.raw(i) for i in pen.text(text)) == text.encode()


def test_control_tokens_have_a_name_but_no_text(texts: TokenTexts, chat_format: ChatFormat) -> None:
    for name in CONTROL_TOKENS:
        token_id = chat_format.control_ids[name]
        assert texts.raw(token_id) == b""
        assert texts.shown(token_id) == name
    assert texts.detokenizer().step(chat_format.control_ids[THINK]) == ""


def test_an_id_that_the_vocabulary_lacks_is_no_text(texts: TokenTexts) -> None:
    assert texts.raw(10**6) == b""


def test_the_byte_alphabet_names_every_byte_once() -> None:
    assert sorted(byte_alphabet().values()) == list(range(256))
