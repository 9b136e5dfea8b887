"""How many tokens a text has: by the model's own tokenizer where its folder is at hand, else by a stated estimate.

A server's tokenizer is not known here. The estimate takes four characters for a token, and one where the character is
Chinese, Japanese or Korean, which is on the high side for today's vocabularies: a segment that is cut by it is rather
too short than too long.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from pipelines.errors import DataError

CHARS_PER_TOKEN = 4
_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\U00020000-\U000323af]")

CountTokens = Callable[[Sequence[str]], list[int]]
"""Texts to their numbers of tokens."""


def token_counter(model: Path | None) -> tuple[CountTokens, str]:
    """What counts tokens, and its name for the samples' metadata.

    Args:
        model: folder in Hugging Face format; None where a server answers.

    Returns:
        The counter, and `tokenizer` or `estimate`.

    Raises:
        DataError: the folder's tokenizer cannot be read.
    """
    if model is None or not (path := model / "tokenizer.json").is_file():
        return estimated_tokens, "estimate"
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare exceptions
        raise DataError(f"{path} is no tokenizer: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda texts: [len(one) for one in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)], (
        "tokenizer"
    )


def estimated_tokens(texts: Sequence[str]) -> list[int]:
    """Four characters a token, one where they are Chinese, Japanese or Korean; rounded up."""
    return [-(-(len(text) - len(wide := _CJK.findall(text))) // CHARS_PER_TOKEN) + len(wide) for text in texts]
