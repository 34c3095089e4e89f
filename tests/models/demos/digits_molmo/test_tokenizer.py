import pytest

from blockexport.models.demos.digits_molmo.data import TASKS
from blockexport.models.demos.digits_molmo.tokenizer import END_OF_TEXT, PICTURE_TOKENS, train_tokenizer

TOKENIZER = train_tokenizer()


def test_any_text_survives():
    text = " User: Wie viele Ziffern? 数字 Assistant:"
    assert TOKENIZER.decode(TOKENIZER.encode(text).ids) == text


def test_picture_tokens_lie_behind_the_base_vocabulary():
    base = TOKENIZER.get_vocab_size(with_added_tokens=True) - len(PICTURE_TOKENS)
    assert [TOKENIZER.token_to_id(token) for token in PICTURE_TOKENS] == list(range(base, base + len(PICTURE_TOKENS)))
    assert TOKENIZER.token_to_id(END_OF_TEXT) == 0


@pytest.mark.parametrize("number", range(19))
def test_each_number_is_one_token(number):
    assert len(TOKENIZER.encode(f" {number}").ids) == 1


@pytest.mark.parametrize("task", TASKS)
def test_questions_are_short(task):
    assert len(TOKENIZER.encode(f" User: {TASKS[task].question} Assistant:").ids) <= 10


def test_training_it_twice_gives_the_same():
    assert train_tokenizer().to_str() == TOKENIZER.to_str()
