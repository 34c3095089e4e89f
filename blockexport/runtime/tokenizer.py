"""The tokenizer that travels in a bundle."""

from typing import Any

from blockexport.bundle.reader import Bundle
from blockexport.errors import RequestError


def load_tokenizer(bundle: Bundle) -> Any:
    """A bundle's `tokenizers.Tokenizer`, which neither pads nor cuts.

    Raises:
        RequestError: the bundle has none.
    """
    folder = bundle.tokenizer_folder
    if folder is None:
        msg = f"the bundle of {bundle.manifest.model.name} has no tokenizer; pass token ids instead of text"
        raise RequestError(msg)
    from tokenizers import Tokenizer  # noqa: PLC0415  (only text needs it)

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    # Shipped tokenizers often pad and cut to a fixed length of their own.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
