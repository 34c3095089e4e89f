"""The tokenizer of `demo:digits-molmo`: byte-level, so that any text can be asked, and whole words where it matters."""

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from blockexport.models.demos.digits_molmo.data import TASKS

END_OF_TEXT = "<|endoftext|>"
PICTURE_TOKENS = ("<im_start>", "<im_end>", "<im_patch>", "<im_col>", "<|image|>")
_MOST_MERGES = 512


def train_tokenizer() -> Tokenizer:
    """Train on the prompts and the answers; the picture tokens get the ids behind the base vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + _MOST_MERGES,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    answers = [" even odd yes no", " ".join(["", *map(str, range(19))])]
    prompts = [f" User: {task.question} Assistant:" for task in TASKS.values()]
    tokenizer.train_from_iterator(prompts + answers, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in PICTURE_TOKENS])
    return tokenizer
