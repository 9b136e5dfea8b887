"""The online methods on a model: what each measures in a step, and which weights it draws the next one with.

A method is its `state`, a few arrays that a checkpoint holds, and functions of it: nothing else is remembered, so that
a killed run goes on to the bit. A batch comes grouped by domain; DoReMi and DoGE draw all domains alike and weigh their
losses, Aioli and ADO weigh the draw. The arithmetic of the updates is in `online_rules.py`.

Legend: D domains, F domains with a fitted curve, M held-out losses, T steps.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipelines.errors import RecipeError
from trainer.learning_curve import LearningCurve, fit_learning_curve
from trainer.model import Decoder
from trainer.online_rules import (
    ado_preference,
    aioli,
    aioli_influence,
    doge,
    doge_scores,
    doremi,
    floored,
    one_hot_mixes,
    smoothed,
)
from trainer.online_settings import OnlineSettings

CURVE_POINTS = 12  # of a domain before its curve is fitted: three numbers from fewer are noise
UNSETTLED = 0.05  # share of the steps left out of a curve: the first ones follow no law


@dataclass(frozen=True)
class Plan:
    """What a method knows before it begins.

    Attributes:
        prior_D: shares of tokens.
        steps: of the whole run.
        seed: of the run.
        probe: held-out losses of a model, float64 (M,); only Aioli asks.
        reference: the model that DoReMi compares with.
    """

    prior_D: np.ndarray
    steps: int
    seed: int
    probe: Callable[[Decoder], np.ndarray] | None = None
    reference: Decoder | None = None


@dataclass(frozen=True)
class Batch:
    """Samples of one step by domain.

    Attributes:
        groups: domain -> int64 (samples, S + 1).
        samples: of all domains.
        rows: most samples of one forward pass.
        learning_rate: of the step.
    """

    groups: dict[int, Tensor]
    samples: int
    rows: int
    learning_rate: float


class Method:
    """Base of the methods: plain training on weights that stay; `state["weights"]` is the current answer."""

    def __init__(self, settings: OnlineSettings, plan: Plan) -> None:
        domains = len(plan.prior_D)
        self.settings, self.plan, self.domains = settings, plan, domains
        self.uniform_D = np.full(domains, 1 / domains)
        self.state: dict[str, np.ndarray] = {
            "weights": self.uniform_D.copy(), "sum": np.zeros(domains), "count": np.zeros(1),
        }  # fmt: skip

    def sampling_D(self, step: int, model: Decoder) -> np.ndarray:
        """Weights to draw a step's samples with; called once, before the step (from 0). Here: all domains alike."""
        return self.uniform_D

    def backward(self, model: Decoder, batch: Batch) -> np.ndarray:
        """Leave the step's gradient in the model; gives the loss of each domain, NaN where it has no sample."""
        return self._backward(model, batch, dict.fromkeys(batch.groups, 1.0))

    def learn(self, step: int, model: Decoder, losses_D: np.ndarray, tokens_D: np.ndarray) -> None:
        """Take note of a finished step; `tokens_D` counts what was drawn from each domain so far."""
        self.count(self.state["weights"])

    def count(self, weights_D: np.ndarray) -> None:
        """Let these weights count in the answer."""
        self.state["sum"] = self.state["sum"] + weights_D
        self.state["count"] = self.state["count"] + 1

    def answer_D(self) -> np.ndarray:
        """Mean of the weights over the steps that count; the prior where none does."""
        count = self.state["count"][0]
        mean_D = self.state["sum"] / count if count else self.plan.prior_D
        return mean_D / mean_D.sum()

    def _backward(self, model: Decoder, batch: Batch, factor: dict[int, float]) -> np.ndarray:
        """Add up the gradient of `sum over domains of factor * share of the batch * mean loss`."""
        losses_D = np.full(self.domains, np.nan)
        for place, samples in batch.groups.items():
            total = 0.0
            for micro in samples.split(batch.rows):
                losses = model.loss(micro[:, :-1], micro[:, 1:])
                share = len(micro) / batch.samples
                beside = (losses.total - losses.ar) * share  # balance is asked for whatever a domain counts
                (losses.ar * (factor[place] * share) + beside).backward()
                total += float(losses.ar.detach()) * len(micro)
            losses_D[place] = total / len(samples)
        return losses_D

    def _even_factors(self, batch: Batch) -> dict[int, float]:
        """`weight / sampling share`: the weighted loss, without bias although all domains are drawn alike."""
        return {place: float(self.state["weights"][place] * self.domains) for place in batch.groups}


class Doremi(Method):
    """Weights follow the excess loss over a reference model."""

    def __init__(self, settings: OnlineSettings, plan: Plan) -> None:
        super().__init__(settings, plan)
        self.state["excess"] = np.zeros(self.domains)  # a domain without a sample keeps its last one

    def backward(self, model: Decoder, batch: Batch) -> np.ndarray:
        """Move the weights by the excess, then the gradient of the weighted loss."""
        excess_D, given = self.state["excess"].copy(), self.settings.doremi
        model.eval()  # the router counts choices in training passes
        for place, samples in batch.groups.items():
            excess_D[place] = self._excess(model, samples, batch.rows)
        model.train()
        self.state["excess"] = excess_D
        self.state["weights"] = doremi(self.state["weights"], excess_D, given.eta, given.smoothing)
        return self._backward(model, batch, self._even_factors(batch))

    def _excess(self, model: Decoder, samples: Tensor, rows: int) -> float:
        assert self.plan.reference is not None
        total = 0.0
        for micro in samples.split(rows):
            inputs, targets = micro[:, :-1], micro[:, 1:]
            over = model.token_losses(inputs, targets) - self.plan.reference.token_losses(inputs, targets)
            total += float(over.clamp(min=0).double().sum())
        return total / samples[:, 1:].numel()


class Doge(Method):
    """Weights follow how well each domain's gradient serves all domains; one without a sample scores the mean."""

    def backward(self, model: Decoder, batch: Batch) -> np.ndarray:
        """Take each domain's gradient, move the weights, then leave the weighted sum."""
        losses_D, gradients = np.full(self.domains, np.nan), []
        parameters = list(model.parameters())
        for place, samples in batch.groups.items():
            model.zero_grad(set_to_none=True)
            alone = Batch({place: samples}, len(samples), batch.rows, batch.learning_rate)
            losses_D[place] = self._backward(model, alone, {place: 1.0})[place]
            gradients.append(torch.cat([_gradient(parameter).flatten() for parameter in parameters]))
        given, scores = self.settings.doge, doge_scores(torch.stack(gradients).cpu().numpy())
        scores_D = np.full(self.domains, scores.mean())
        scores_D[list(batch.groups)] = scores
        moved_D = doge(self.state["weights"], scores_D, batch.learning_rate, given.mu)
        self.state["weights"] = smoothed(moved_D, given.smoothing)
        factors = self._even_factors(batch)
        shares = [factors[place] * len(samples) / batch.samples for place, samples in batch.groups.items()]
        summed = torch.stack([gradient * share for gradient, share in zip(gradients, shares, strict=True)]).sum(0)
        for parameter, piece in zip(parameters, summed.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = piece.view_as(parameter).clone()
        return losses_D


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


class Aioli(Method):
    """Rounds: learn on one-hot-like mixes how domains lower held-out losses, then train on the moved weights."""

    def __init__(self, settings: OnlineSettings, plan: Plan) -> None:
        super().__init__(settings, plan)
        given = settings.aioli
        self.mixes_DD = one_hot_mixes(self.domains, given.one_hot) if self.domains > 1 else np.ones((1, 1))
        self.round_steps = plan.steps // given.rounds
        self.piece = int(given.learning * self.round_steps / (given.sweeps * self.domains))
        if self.piece < 1:
            least = int(np.ceil(given.sweeps * self.domains / given.learning)) * given.rounds
            raise RecipeError(
                f"aioli: {plan.steps} steps are too few for {given.rounds} rounds of {given.sweeps} sweeps over "
                f"{self.domains} domains; it takes {least}: more tokens, smaller batches or fewer rounds"
            )
        assert plan.probe is not None
        self.probe = plan.probe
        self.state |= {"held": np.zeros(0), "drops": np.zeros(0)}

    def _place(self, step: int) -> tuple[int, int, int]:
        """Round, steps of it that are done, and the mix that is learned about; -1 where weights are trained on."""
        number = min(step // self.round_steps, self.settings.aioli.rounds - 1)
        within = step - number * self.round_steps
        piece = within // self.piece
        if piece >= self.settings.aioli.sweeps * self.domains:
            return number, within, -1
        sweep, turn = divmod(piece, self.domains)
        order = np.random.default_rng([self.plan.seed, number, sweep]).permutation(self.domains)
        return number, within, int(order[turn])

    def sampling_D(self, step: int, model: Decoder) -> np.ndarray:
        """The mix to learn about, or the weights."""
        _, within, mix = self._place(step)
        if within == 0:
            self.state["held"] = self.probe(model)
            self.state["drops"] = np.zeros((self.domains, len(self.state["held"])))
        return self.state["weights"] if mix < 0 else self.mixes_DD[mix]

    def learn(self, step: int, model: Decoder, losses_D: np.ndarray, tokens_D: np.ndarray) -> None:
        """Measure at the end of each piece; move the weights at the end of the last one."""
        _, within, mix = self._place(step)
        if mix < 0:
            self.count(self.state["weights"])
        elif (within + 1) % self.piece == 0:
            held_M, drops_DM = self.probe(model), self.state["drops"].copy()
            drops_DM[mix] += self.state["held"] - held_M
            self.state |= {"held": held_M, "drops": drops_DM}
            if within + 1 == self.piece * self.settings.aioli.sweeps * self.domains:
                influence_MD = aioli_influence(self.mixes_DD, drops_DM / self.settings.aioli.sweeps)
                self.state["weights"] = aioli(self.state["weights"], influence_MD, self.settings.aioli.eta)
                self.count(self.state["weights"])


class Ado(Method):
    """Weights follow how fast each domain's own learning curve still falls."""

    def __init__(self, settings: OnlineSettings, plan: Plan) -> None:
        super().__init__(settings, plan)
        prior_D = plan.prior_D
        self.state |= {
            "weights": prior_D.copy(), "usage": prior_D.copy(), "mean": prior_D.copy(), "steps": np.zeros(1),
            "tokens": np.zeros((0, self.domains)), "losses": np.zeros((0, self.domains)),
            "curves": np.full((self.domains, 3), np.nan), "drawn": np.zeros(self.domains),
        }  # fmt: skip
        self.warmup = max(1, round(settings.ado.warmup * plan.steps))
        self.every = max(1, round((plan.steps - self.warmup) / settings.ado.refits))

    def sampling_D(self, step: int, model: Decoder) -> np.ndarray:
        """The prior until there are curves; then mostly the mean of the weights so far, and a share of preference."""
        given, state = self.settings.ado, self.state
        if step >= self.warmup and (step - self.warmup) % self.every == 0:
            self._fit()
        if self._fitted_D().any():
            mixed_D = (1 - given.preference) * state["mean"] + given.preference * self._preference_D()
            state["weights"] = floored(mixed_D / mixed_D.sum(), given.floor)
        return state["weights"]

    def learn(self, step: int, model: Decoder, losses_D: np.ndarray, tokens_D: np.ndarray) -> None:
        """Extend the curves, and move the averages."""
        state, memory, weights_D = self.state, self.settings.ado.memory, self.state["weights"]
        state["usage"] = memory * state["usage"] + (1 - memory) * weights_D
        state["steps"] = state["steps"] + 1
        state["mean"] = state["mean"] + (weights_D - state["mean"]) / state["steps"][0]
        state["drawn"] = tokens_D.astype(float)
        state["tokens"] = np.vstack([state["tokens"], state["drawn"]])
        state["losses"] = np.vstack([state["losses"], losses_D])
        if self._fitted_D().any():
            self.count(weights_D)

    def _fitted_D(self) -> np.ndarray:
        """Which domains have a curve."""
        return np.isfinite(self.state["curves"][:, 0])

    def _preference_D(self) -> np.ndarray:
        """What domains with a curve have together, shared by how fast theirs fall; the others keep the prior."""
        own_D, wanted_D = self._fitted_D(), self.plan.prior_D.copy()
        curves = [LearningCurve(*curve) for curve in self.state["curves"][own_D].tolist()]
        prior_F, drawn_F = wanted_D[own_D], self.state["drawn"][own_D]
        above_F = np.array([curve.above(n) for curve, n in zip(curves, drawn_F, strict=True)])
        exponent_F = np.array([curve.alpha for curve in curves])
        speed_F = ado_preference(prior_F, self.state["usage"][own_D], exponent_F, above_F, drawn_F)
        wanted_D[own_D] = prior_F.sum() * speed_F
        return wanted_D

    def _fit(self) -> None:
        """Fit the curves of domains with enough points."""
        begins = round(UNSETTLED * self.plan.steps)
        tokens_TD, losses_TD = self.state["tokens"][begins:], self.state["losses"][begins:]
        seen_TD = np.isfinite(losses_TD)
        for place in np.flatnonzero(seen_TD.sum(axis=0) >= CURVE_POINTS):
            seen_T = seen_TD[:, place]
            curve = fit_learning_curve(tokens_TD[seen_T, place], losses_TD[seen_T, place])
            self.state["curves"][place] = curve.eps, curve.beta, curve.alpha


METHODS: dict[str, type[Method]] = {"doremi": Doremi, "doge": Doge, "aioli": Aioli, "ado": Ado}
