"""Questions about pictures as labelled samples, which models and engines are judged on in one forward."""

import numpy as np

from blockexport.core.data import IGNORED_LABEL, Sample
from blockexport.core.questions import PictureQuestion, judge
from blockexport.errors import DataError
from blockexport.processing.processor import MolmoProcessor


def question_sample(question: PictureQuestion, processor: MolmoProcessor) -> Sample:
    """The prompt, then the answer to its end token, which is what the model must say.

    An answer counts as given when each of its tokens is the most likely one, which is when greedy decoding gives it.
    For `vqa_accuracy` the labelled answer is the most frequent one, and what else people said is worth what
    `core.questions.judge` gives for it.

    Raises:
        DataError: choices that begin with the same token, or an answer without a token.
        RequestError: a picture that cannot be processed.
    """
    answer = max(question.answers, key=question.answers.count)
    reply = answer_tokens(answer, processor)
    prompt = processor(question.question, [question.picture])
    tokens = np.concatenate([prompt["input_ids"], np.array(reply, np.int64)])
    labels = np.full(len(tokens), IGNORED_LABEL, np.int64)
    labels[-len(reply) :] = reply
    choices = tuple(answer_tokens(choice, processor)[0] for choice in question.choices)
    if len(set(choices)) < len(choices):
        msg = f"choices {question.choices} of {question.question!r} begin alike; ask for their letters instead"
        raise DataError(msg)
    replies = {}
    if question.metric == "vqa_accuracy":
        replies = {tuple(answer_tokens(said, processor)): judge(question, said) for said in question.answers}
    inputs = {**prompt, "input_ids": tokens}
    return Sample(inputs, labels, question.metric, question.task, choices=choices, replies=tuple(replies.items()))


def answer_tokens(answer: str, processor: MolmoProcessor) -> list[int]:
    """Tokens of an answer as it stands behind a prompt, with the one that ends it.

    Raises:
        DataError: there is nothing in it.
    """
    tokens: list[int] = processor.tokenizer.encode(f" {answer}", add_special_tokens=False).ids
    if not answer.strip() or not tokens:
        msg = f"answer {answer!r} has no token; give a word or a number"
        raise DataError(msg)
    return [*tokens, processor.end_token]
