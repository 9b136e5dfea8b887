"""Log-likelihoods of text under a causal language model: whole documents, and continuations of a context.

Which token is scored given which is decided by two small pure functions that follow lm-evaluation-harness 0.4.13
exactly (`lm_eval/api/model.py`, `lm_eval/utils.py`), so that numbers can be compared with published ones. The model
only ever sees `Span`s, sorted by length into right-padded batches of a fixed number of tokens.

Shapes: B sequences of a batch, T tokens of the longest, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import DataError
from pipelines.model_folder import check_model_folder

LOGIT_BUDGET = 1 << 28  # logits of one batch, in numbers: 1 GiB of float32


@dataclass(frozen=True)
class Span:
    """Tokens for the model, of which the last `scored` are scored, each given all before it.

    Attributes:
        tokens: context first, then the scored tokens; at least one token of context.
        scored: how many at the end are scored.
    """

    tokens: tuple[int, ...]
    scored: int


def document_spans(tokens: Sequence[int], prefix: int, max_length: int) -> list[Span]:
    """Cut a document so that every token is scored once, in disjoint windows.

    The first window is led by `prefix`, a middle one by the one token before it, and the last by as many tokens as
    still fit.

    Args:
        tokens: the document.
        prefix: the token that stands before every document in training.
        max_length: most tokens that the model takes at once.
    """
    led = (prefix, *tokens)
    spans = []
    for start in range(0, len(tokens), max_length):
        end = min(start + max_length, len(tokens))
        first = max(0, end - max_length) if end == len(tokens) else start
        spans.append(Span(led[first : end + 1], end - start))
    return spans


def split_pair(context: str, continuation: str) -> tuple[str, str]:
    """Move white space at the end of the context to the continuation: ` word` is one token, ` ` and `word` are two."""
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation


def continuation_span(
    encode: Callable[[str], list[int]], context: str, continuation: str, max_length: int
) -> Span | None:
    """Tokenize context and continuation together, and score what lies beyond the context's own number of tokens.

    Args:
        encode: text to tokens.
        context: after `split_pair`.
        continuation: after `split_pair`.
        max_length: most tokens that the model takes at once; the context loses tokens on the left when it must.

    Returns:
        None when the continuation has no token of its own, or does not fit.
    """
    whole = encode(context + continuation)
    scored = len(whole) - len(encode(context))
    if not 0 < scored <= max_length or scored == len(whole):
        return None
    return Span(tuple(whole[-(max_length + 1) :]), scored)


class Scorer:
    """A Hugging Face model folder, ready to score on the CPU or the GPU in float32.

    Args:
        model: folder with config, weights and tokenizer.
        max_length: tokens per window; the model's own limit when not given.
        batch_tokens: most tokens of a padded batch.

    Attributes:
        max_length: tokens per window.
        prefix: token that stands before a text.
        eos_id: token that ends a document, if there is one.
        vocab_size: of the model.

    Raises:
        DataError: the folder holds no model or no tokenizer that transformers can load.
    """

    def __init__(self, model: Path, max_length: int | None = None, batch_tokens: int = 8192) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils.logging import disable_progress_bar

        check_model_folder(model)
        disable_progress_bar()  # it would write into pipes
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(model, local_files_only=True)
            network: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, local_files_only=True)
        except (OSError, ValueError) as error:
            raise DataError(f"{model} cannot be loaded: {str(error).splitlines()[0]}") from None
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.network = network.to(self.device).eval()
        config = network.config
        self.max_length = min(max_length or config.max_position_embeddings, config.max_position_embeddings)
        self.batch_tokens = max(1, min(batch_tokens, LOGIT_BUDGET // config.vocab_size))
        self.prefix = _prefix_of(self.tokenizer, config, model)
        self.eos_id: int | None = self.tokenizer.eos_token_id
        self.vocab_size: int = config.vocab_size
        if (found := len(self.tokenizer)) > self.vocab_size:
            raise DataError(
                f"{model}: its tokenizer has {found} tokens, its model only {self.vocab_size}; not its own?"
            )

    def encode(self, text: str) -> list[int]:
        """Tokens of a text, with none added."""
        return self.encode_all([text])[0]

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of many texts, with none added; the name of a special token inside a text is text, as in training."""
        if not texts:
            return []
        options = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
        return self.tokenizer(list(texts), **options)["input_ids"]

    def spans_of(self, tokens: Sequence[int]) -> list[Span]:
        """`document_spans` with this model's prefix and window."""
        return document_spans(tokens, self.prefix, self.max_length)

    def pair_span(self, context: str, continuation: str) -> Span | None:
        """`continuation_span` with this model's tokenizer and window."""
        return continuation_span(self.encode, context, continuation, self.max_length)

    def nll_nats(self, spans: Sequence[Span], done: Callable[[int], None] = lambda tokens: None) -> list[float]:
        """Negative log-likelihood of the scored part of each span.

        Args:
            spans: any lengths, any order.
            done: told after each batch how many tokens it scored.

        Returns:
            Nats, in the order given; float64 sums of float32 token terms.
        """
        import torch

        totals = [0.0] * len(spans)
        for batch in _batches(spans, self.batch_tokens):
            with torch.inference_mode():
                for index, total in zip(batch, self._score([spans[i] for i in batch]), strict=True):
                    totals[index] = total
            done(sum(spans[i].scored for i in batch))
        return totals

    def _score(self, spans: list[Span]) -> list[float]:
        import torch
        from torch.nn.functional import cross_entropy

        length = max(len(span.tokens) for span in spans) - 1
        first = min(len(span.tokens) - 1 - span.scored for span in spans)  # no logits are needed before it
        inputs_BT = torch.zeros((len(spans), length), dtype=torch.long)
        targets_BT = torch.full((len(spans), length), -100)  # what cross_entropy leaves out
        for row, span in enumerate(spans):
            tokens = torch.tensor(span.tokens)
            last = len(tokens) - 1
            inputs_BT[row, :last] = tokens[:-1]
            targets_BT[row, last - span.scored : last] = tokens[last + 1 - span.scored :]
        # right padding needs no mask: a causal model never looks to the right
        found = self.network(input_ids=inputs_BT.to(self.device), use_cache=False, logits_to_keep=length - first)
        targets_BT = targets_BT[:, first:].to(self.device)
        losses = cross_entropy(found.logits.flatten(0, 1).float(), targets_BT.flatten(), reduction="none")
        return losses.view_as(targets_BT).double().sum(dim=1).tolist()


def _prefix_of(tokenizer: Any, config: Any, model: Path) -> int:
    """Token that stands before a text: beginning of sequence, else end of sequence."""
    for candidate in (tokenizer.bos_token_id, tokenizer.eos_token_id, config.eos_token_id):
        if isinstance(candidate, int):
            return candidate
    raise DataError(
        f"{model}: neither its tokenizer nor its config names an end-of-text token, needed before a document"
    )


def _batches(spans: Sequence[Span], batch_tokens: int) -> list[list[int]]:
    """Indices of spans in batches, longest first, so that padding is small and the largest batch comes at once."""
    order = sorted(range(len(spans)), key=lambda index: (-len(spans[index].tokens), index))
    batches: list[list[int]] = []
    for index in order:
        longest = len(spans[batches[-1][0]].tokens) if batches else 0
        if not batches or (len(batches[-1]) + 1) * longest > batch_tokens:
            batches.append([])
        batches[-1].append(index)
    return batches
