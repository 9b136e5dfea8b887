from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import RecipeError
from synth.engines import EngineSettings
from synth.ledger import LEDGER, Budget, Prices, Row, summary
from synth.protocol import Identity, Message, Request, Response, Usage

NONE = Prices(None, None)
IDENTITY = Identity(model="m", digest="d" * 64, backend="endpoint", version="1")


def ask(content: str = "abcd", limit: int = 10, seed: int = 0) -> Request:
    about = {"doc_id": f"d{seed}", "stage": "s", "attempt": "0"}
    return Request(messages=(Message(role="user", content=content),), max_tokens=limit, temperature=0, top_p=1,
                   seed=seed, metadata=about)  # fmt: skip


def said(prompt: int, completion: int, finish: str = "stop", **raw) -> Response:
    usage = Usage(prompt_tokens=prompt, completion_tokens=completion)
    return Response.model_validate({"text": "x", "finish_reason": finish, "usage": usage, "raw": raw})


def test_columns_are_the_fields():
    assert LEDGER.names == [field.name for field in fields(Row)]


@pytest.mark.parametrize(
    ("finish", "raw", "status", "code", "error"),
    [("stop", {"status": 200}, "answered", 200, ""), ("stop", {}, "answered", None, ""),
     ("length", {"status": 200}, "truncated", 200, ""), ("refused", {"status": 422}, "refused", 422, "deterministic"),
     ("prompt_too_long", {}, "prompt_too_long", None, "deterministic"),
     ("poison", {"status": 0}, "poison", None, "poison"), ("not_recorded", {}, "not_recorded", None, "not_recorded")],
)  # fmt: skip
def test_every_end_has_its_status(finish: str, raw: dict, status: str, code: int | None, error: str):
    row = Row.of("k", ask(), said(5, 2, finish, **raw), IDENTITY, NONE)
    assert (row.status, row.http_code, row.error_class, row.tokens) == (status, code, error, 7)
    assert row.model == "m dddddddddddddddd"


def test_a_price_that_is_missing_beside_another_is_nothing():
    assert Prices.from_settings(EngineSettings(price_per_million_completion=3.0)) == Prices(0.0, 3.0)
    assert Prices.from_settings(EngineSettings()).of(Usage(prompt_tokens=5)) is None


def test_without_a_budget_all_may_be_asked_together():
    budget = Budget(None, None, NONE)
    assert (budget.admit([ask()] * 50), budget.documents(1024)) == (50, 1024)


def measured(tokens: int | None, usd: float | None = None, prices: Prices = NONE, prompt: int = 60) -> Budget:
    """A budget of so much more than what was spent on one request, which has measured the stage."""
    cost = (prices.of(Usage(prompt_tokens=prompt)) or 0.0) if usd is not None else 0.0
    budget = Budget(tokens and tokens + prompt, usd and usd + cost, prices)
    budget.spend(ask(), said(prompt, 0))
    return budget


def test_one_is_asked_before_the_template_is_known():
    budget = Budget(10_000, None, NONE)
    assert budget.admit([ask()] * 50) == 1
    budget.spend(ask(), said(604, 6))
    assert budget.admit([ask()] * 50) == (10_000 - 610) // (4 + 604 + 10)


def test_the_guess_is_bounded_by_the_tokenizer_where_there_is_one():
    assert Budget(4 + 64 + 10, None, NONE).admit([ask()]) == 1
    assert Budget(4 + 64 + 10, None, NONE, lambda request: 69).admit([ask()]) == 0
    assert Budget(79, None, NONE, lambda request: 69).admit([ask()]) == 1


def test_every_stage_is_measured():
    budget = measured(10_000, prompt=300)
    other = ask().model_copy(update={"metadata": {"stage": "t"}})
    assert budget.admit([other] * 5) == 1
    assert budget.admit([ask(), ask(), other]) == 2


def test_what_cost_nothing_measures_nothing():
    budget = Budget(10_000, None, NONE)
    budget.spend(ask(), said(0, 0, "refused"))
    assert budget.admit([ask()] * 50) == 1


def test_as_many_are_admitted_as_fit_if_each_took_all_it_may():
    most = 4 + 60 + 10  # bytes, the shortest prompt seen, ceiling
    assert measured(3 * most).admit([ask()] * 5) == 3
    assert measured(3 * most - 1).admit([ask()] * 5) == 2


def test_dollars_bound_as_tokens_do():
    prices = Prices(1.0, 2.0)
    most = (4 + 60 + 2 * 10) / 1e6
    assert measured(None, 3.5 * most, prices).admit([ask()] * 5) == 3
    with pytest.raises(RecipeError, match="price_per_million"):
        Budget(None, 1.0, NONE)


def test_once_something_does_not_fit_nothing_more_is_asked():
    budget = Budget(100, None, NONE)
    assert budget.admit([ask("x" * 90), ask()]) == 0
    assert (budget.admit([ask()]), budget.ended) == (0, True)
    assert budget.unmet == {"needed_tokens": 90 + 64 + 10, "left_tokens": 100}  # of the first that did not fit


def test_groups_shrink_towards_the_end():
    budget, sizes = Budget(100_000, None, NONE), []
    for _ in range(14):
        sizes.append(size := budget.documents(1024))
        for number in range(size):
            budget.spend(ask(seed=number), said(90, 10))
        budget.finished(size)
    assert sizes[:4] == [16, 492, 246, 123]
    assert sizes[-1] == 1


COSTS = st.lists(st.tuples(st.integers(0, 80), st.integers(1, 60), st.floats(0, 1)), max_size=60)


@given(st.integers(1, 5000), st.integers(1, 900), COSTS, st.booleans())
def test_a_budget_is_passed_by_a_first_template_at_most(
    tokens: int, template: int, costs: list[tuple[int, int, float]], known: bool
):
    requests = [ask("x" * chars, limit, seed) for seed, (chars, limit, _) in enumerate(costs)]
    prompts = [template + int(share * chars) for chars, _, share in costs]
    budget = Budget(tokens, None, NONE, lambda request: prompts[request.seed] if known else None)
    spent, at = 0, 0
    while count := budget.admit(requests[at:]):
        for (_, limit, share), request in zip(costs[at : at + count], requests[at : at + count], strict=True):
            response = said(prompts[request.seed], int(share * limit))
            spent += response.usage.prompt_tokens + response.usage.completion_tokens
            budget.spend(request, response)
        at += count
    assert spent <= tokens or (at == 1 and not known and template > 64)
    assert at == len(requests) or budget.ended


def test_the_summary_speaks_of_what_was_accepted():
    prices = Prices(0.0, 100.0)
    rows = [Row.of("k", ask(seed=n), said(10, 5), IDENTITY, prices, "strict") for n in range(4)]
    rows.append(Row.of("k", ask(seed=4), said(10, 0, "poison"), IDENTITY, prices))
    found = summary(rows, {"d0"})
    assert (found["completion_tokens"], found["accepted_completion_tokens"], found["yield"]) == (20, 5, 0.25)
    assert found["cost_usd"] == pytest.approx(20 * 100 / 1e6)
    assert found["cost_usd_per_million_accepted_tokens"] == pytest.approx(400.0)
    assert (found["errors"], found["json_read"]) == ({"poison": 1}, {"strict": 4})
    assert summary([], set())["yield"] is None


def test_the_judge_costs_and_yields_nothing():
    prices = Prices(0.0, 100.0)
    row = Row.of("k", ask(), said(10, 5), IDENTITY, prices)
    found = summary([row], {"d0"}, [Row.of("j", ask(), said(30, 15), IDENTITY, prices)])
    assert (found["answers"], found["completion_tokens"], found["yield"]) == (1, 5, 1.0)
    assert found["cost_usd"] == pytest.approx(20 * 100 / 1e6)
    assert found["cost_usd_per_million_accepted_tokens"] == pytest.approx(400.0)
    assert (found["judge"]["answers"], found["judge"]["completion_tokens"]) == (1, 15)
