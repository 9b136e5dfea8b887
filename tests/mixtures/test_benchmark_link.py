import csv

import numpy as np
import pytest

from mixtures.benchmark_link import LinkSettings, Sigmoid, chance_of, link_benchmarks, write_links
from mixtures.tables import Metrics
from pipelines.errors import DataError


def table(names, columns):
    values = np.stack(columns, axis=1)
    return Metrics(tuple(f"r{row:03d}" for row in range(len(values))), names, values)


def linked(runs, noise, seed=0, others=3):
    """Accuracies that follow the loss called `code`, beside losses that tell nothing."""
    random = np.random.default_rng(seed)
    losses = 3 + 0.2 * random.normal(size=(runs, 1 + others))
    x = (losses[:, 0] - losses[:, 0].mean()) / losses[:, 0].std()
    accuracy = 0.25 + 0.6 / (1 + np.exp(1.5 * (x - 0.2))) + random.normal(0, noise, runs)
    names = ("code", *(f"other{place}" for place in range(others)))
    return table(names, list(losses.T)), table(("quiz",), [accuracy])


def test_the_right_loss_and_its_sigmoid_are_found():
    (found,) = link_benchmarks(*linked(60, 0.01), LinkSettings(chance={"quiz": 0.25}))
    assert (found.verdict, found.predictor) == ("linked", "code")
    assert found.ceiling == pytest.approx(0.85, abs=0.04)
    assert found.steepness == pytest.approx(1.5, rel=0.15)
    assert found.middle == pytest.approx(0.2, abs=0.2)
    assert found.error == pytest.approx(0.01, rel=0.3)
    assert found.half80 < found.half95 < 0.04


def test_losses_that_tell_nothing_are_not_distinguishable_from_the_mean():
    random = np.random.default_rng(1)
    verdicts = []
    for _ in range(6):
        losses = table(tuple("abcd"), list(random.normal(3, 0.2, (4, 12))))
        verdicts.append(link_benchmarks(losses, table(("quiz",), [random.normal(0.5, 0.05, 12)]))[0].verdict)
    assert verdicts.count("not distinguishable") >= 5


def test_percent_is_read_and_written_as_percent():
    losses, shares = linked(20, 0.01)
    (share,) = link_benchmarks(losses, shares, LinkSettings(chance={"quiz": 0.25}))
    percents = Metrics(shares.ids, shares.names, 100 * shares.values_PM)
    (percent,) = link_benchmarks(losses, percents, LinkSettings(chance={"qu*": 0.25}))
    assert percent.error == pytest.approx(100 * share.error)
    assert percent.chance == 25


def test_accuracies_at_chance_are_no_evidence():
    losses, _ = linked(12, 0.01)
    at_chance = table(("MMLU", "Winogrande"), [np.linspace(0.24, 0.28, 12), np.linspace(0.6, 0.7, 12)])
    verdicts = {link.benchmark: link.verdict for link in link_benchmarks(losses, at_chance)}
    assert verdicts["MMLU"] == "at chance"
    assert verdicts["Winogrande"] != "at chance"
    flat = table(("same",), [np.full(12, 0.4)])
    assert link_benchmarks(losses, flat)[0].verdict == "at chance"


@pytest.mark.parametrize(("name", "chance"), [("ARC-Easy", 0.25), ("CMMLU", 0.25), ("PIQA", 0.5), ("GSM8K", 0)])
def test_known_chances(name, chance):
    assert chance_of(name, LinkSettings()) == chance
    assert chance_of(name, LinkSettings(chance={name: 0.1})) == 0.1


def test_a_weighted_loss():
    losses, quiz = linked(20, 0.01)
    (found,) = link_benchmarks(losses, quiz, LinkSettings(weights={"code": 2, "other0": 1}))
    assert found.predictor == "weighted mean of losses"
    with pytest.raises(DataError, match="unknown: rhyme"):
        link_benchmarks(losses, quiz, LinkSettings(weights={"rhyme": 1}))
    with pytest.raises(DataError, match="chance: 'quizz' means no benchmark; there are quiz"):
        link_benchmarks(losses, quiz, LinkSettings(chance={"quizz": 0.25}))


def test_order_changes_nothing():
    losses, quiz = linked(20, 0.02)
    order = np.random.default_rng(2).permutation(20)
    ids = tuple(losses.ids[row] for row in order)
    turned = Metrics(ids, losses.names[::-1], losses.values_PM[order][:, ::-1])
    assert link_benchmarks(losses, quiz) == link_benchmarks(turned, quiz)


def test_too_little_is_said():
    losses, quiz = linked(4, 0.01)
    with pytest.raises(DataError, match="4 runs cannot support a link"):
        link_benchmarks(losses, quiz)
    losses, quiz = linked(6, 0.01)
    with pytest.raises(DataError, match="no loss differs"):
        link_benchmarks(Metrics(losses.ids, ("same",), np.ones((6, 1))), quiz)
    with pytest.raises(DataError, match="'r005'"):
        link_benchmarks(losses, Metrics(quiz.ids[:5], quiz.names, quiz.values_PM[:5]))


def test_derivatives_of_the_sigmoid():
    form = Sigmoid(np.linspace(-2, 2, 7), 0.25, 1.0, np.ones(3))
    theta_BK = np.array([[0.3, 0.2, 0.8], [-1.0, 1.0, 0.9]])
    slope_BPK = np.stack(
        [(form.values(theta_BK + step) - form.values(theta_BK - step)) / 2e-6 for step in 1e-6 * np.eye(3)], 2
    )
    assert form.jacobian(theta_BK)[1] == pytest.approx(slope_BPK, abs=1e-8)


def test_published_accuracies_of_openseek(published, tmp_path):
    """Twelve published models; the loss is made from HellaSwag, so that HellaSwag is linked and MMLU is at chance."""
    with (published / "openseek_benchmarks.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = ("HellaSwag", "ARC-Easy", "MMLU", "CEval", "BoolQ")
    accuracy = [np.array([float(row[name]) for row in rows]) for name in names]
    losses = table(("made", "noise"), [2 - np.log(accuracy[0]), np.random.default_rng(0).normal(size=len(rows))])
    links = {link.benchmark: link for link in link_benchmarks(losses, table(names, accuracy))}
    assert links["HellaSwag"].verdict == "linked"
    assert links["HellaSwag"].error < 0.2 * links["HellaSwag"].mean_error
    assert (links["MMLU"].verdict, links["CEval"].verdict) == ("at chance", "at chance")
    report = write_links(list(links.values()), tmp_path)
    assert sum(report["verdicts"].values()) == len(names)
    assert Metrics.read_csv(tmp_path / "links.csv").ids == ("HellaSwag", "ARC-Easy", "BoolQ")
