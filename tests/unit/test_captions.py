"""Which captions are taken, and how answers are unwrapped."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.captions import CaptionRules, caption_of, caption_problem, drawn, naming_words

RULES = CaptionRules("falling_snow", "cover the photo with falling snow", ("<a_1>", "<b_2>"), "en")
GOOD = "A cold scene with soft white snow that falls over the whole photograph."


def test_a_good_caption_is_taken_in_any_wrapping() -> None:
    for wrapped in (GOOD, f'"{GOOD}"', f"```\n{GOOD}\n```", f"<think>hm</think> Caption: {GOOD}"):
        assert caption_of(wrapped, RULES) == GOOD


@pytest.mark.parametrize(
    ("caption", "why"),
    [
        ("", "0 words"),
        ("snow", "1 words"),
        ("snow " * 61, "at most 60"),
        (f"{GOOD} <b_2>", "trigger"),
        (f"{GOOD} <unknown>", "markup"),
        ("I'm sorry, I cannot describe the snow in this photograph.", "speaks of you"),
        ("Мягкий белый снег падает на всю фотографию", "not an English"),
        ("snow qwer zxcv uiop hjkl bnm", "not an English"),
        ("A warm scene with golden light over the whole photograph.", "does not name"),
    ],
)
def test_what_is_wrong_is_said(caption: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        caption_of(caption, RULES)


def test_another_language_where_any_will_do() -> None:
    rules = CaptionRules("снег", "снег", (), "any")
    assert caption_problem("мягкий белый снег падает на всё", rules) is None


def test_forms_of_a_word_name_the_effect() -> None:
    assert caption_problem("A snowy scene with soft flakes of white.", RULES) is None
    assert naming_words("snow", "make the photo look like this") == {"snow"}


@given(st.text(max_size=300))
def test_any_answer_is_taken_or_refused_in_words(answer: str) -> None:
    try:
        caption = caption_of(answer, RULES)
    except ValueError:
        return
    assert caption_problem(caption, RULES) is None


def test_drawn_pairs_are_a_function_of_seed_and_effect() -> None:
    assert drawn(2, 20, 0, "snow") == drawn(2, 20, 0, "snow")
    assert len({tuple(drawn(2, 20, seed, "snow")) for seed in range(20)}) > 10
    assert drawn(2, 1, 0, "snow") == [0]
    assert drawn(2, 0, 0, "snow") == []
