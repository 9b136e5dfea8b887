import numpy as np
import pytest
from pydantic import ValidationError

from pipelines.errors import RecipeError
from trainer.fill_in_middle import FillInMiddle, cut_sample

PRE, SUF, MID = 901, 902, 903


def settings_of(**given: object) -> FillInMiddle:
    return FillInMiddle.model_validate({"share": 1.0, "prefix": PRE, "suffix": SUF, "middle": MID, **given})


def cut(lengths: list[int], settings: FillInMiddle, seed: int = 0) -> tuple[list[int], list[int]]:
    tokens = np.arange(sum(lengths))
    documents = np.repeat(np.arange(len(lengths)), lengths)
    found, owners = cut_sample(tokens, documents, settings, np.random.default_rng(seed))
    return found.tolist(), owners.tolist()


def told(body: list[int]) -> list[int]:
    """The document that a cut one tells: prefix, middle, suffix."""
    assert body[0] == PRE
    suffix, middle = body.index(SUF), body.index(MID)
    if suffix == 1:  # suffix, prefix, middle: the last two are one run
        return body[middle + 1 :] + body[2:middle]
    return body[1:suffix] + body[middle + 1 :] + body[suffix + 1 : middle]


@pytest.mark.parametrize("suffix_first", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_a_document_is_told_whole_and_ends_as_it_did(suffix_first: float, seed: int):
    found, owners = cut([20, 40], settings_of(suffix_first=suffix_first), seed)
    first = found[: owners.index(1)]
    assert first[-1] == 19  # its end stays at its end
    assert told(first[:-1]) == list(range(19))
    if suffix_first:
        assert first[:2] == [PRE, SUF]


def test_the_sample_keeps_its_length_and_loses_its_end():
    found, owners = cut([20, 40], settings_of())
    assert len(found) == len(owners) == 60
    assert sorted(set(owners)) == [0, 1]
    assert len(set(range(60)) - set(found)) == 6  # three tokens for each document


def test_short_documents_and_the_rest_of_the_share_stay():
    assert cut([4, 3, 2], settings_of()) == (list(range(9)), [0] * 4 + [1] * 3 + [2] * 2)
    counts = [PRE in cut([30], settings_of(share=0.25), seed)[0] for seed in range(400)]
    assert 70 < sum(counts) < 130


def test_names_of_tokens_become_ids():
    named = FillInMiddle()
    with pytest.raises(RecipeError, match="name of a token"):
        named.token_ids()
    ids = {"<|fim_prefix|>": 1, "<|fim_suffix|>": 2, "<|fim_middle|>": 3}
    assert named.with_ids(ids.get).token_ids() == (1, 2, 3)
    with pytest.raises(RecipeError, match="no token '<|fim_middle|>'".replace("|", r"\|")):
        named.with_ids({k: v for k, v in ids.items() if v < 3}.get)


def test_an_id_is_not_below_0():
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        FillInMiddle(prefix=-3)
