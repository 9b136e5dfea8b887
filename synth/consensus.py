"""Agreement among chains, for questions whose answer nobody knows: what most of them say.

A majority is no proof. It is called `consensus` and never `verified`, and the chains that it outvotes are undecided,
never refuted.
"""

from collections.abc import Callable, Sequence


def majority(answers: Sequence[str], of: int, share: float, same: Callable[[str, str], bool]) -> list[int]:
    """Chains that give the answer of most.

    Args:
        answers: of the chains that gave one.
        of: how many chains there are, with those that gave none.
        share: of all chains that must be exceeded.
        same: whether two answers are one.

    Returns:
        Indices into `answers`, of two or more; none where no answer has such a majority.
    """
    classes: list[list[int]] = []
    for index, answer in enumerate(answers):
        mine = next((group for group in classes if same(answer, answers[group[0]])), None)
        if mine is None:
            classes.append([index])
        else:
            mine.append(index)
    best = max(classes, key=len, default=[])
    return best if len(best) >= 2 and len(best) > share * of else []
