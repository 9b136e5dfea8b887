"""Joint laws of parameters N, tokens D and mixture w, one form with three sets of free parameters.

    L = E + T(w) N^-p D^-q + A(w) N^-alpha + B(w) D^-beta
    T(w) = (c0 + sum_i c_i w_i^b_i)^-g,   A(w) = A (sum_i s_i w_i)^u,   B(w) = B (sum_i t_i w_i)^v

`joint_effective`: data are effective by mixture (g, p, q free, b = 1, A and B constant), the fewest parameters.
`joint_additive`: mixture, size and tokens add up (g = 1, p = q = 0), as in the additive law of "Scaling Laws for
Optimal Data Mixtures" (arXiv:2507.09404). `joint_full`: there A and B depend on the mixture, too. Fitted to relative
errors, since levels differ between scales. B problems, P runs, D domains, K = 11 + 4 D parameters.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mixtures.least_squares import Problems, cost_of, minimise

KINDS = ("joint_effective", "joint_additive", "joint_full")
PENALTIES = (1.0, 0.1, 0.01)
HEAD = ("floor", "size", "alpha", "tokens", "beta", "rest", "bend", "by_size", "by_tokens", "u", "v")
FLOOR, SIZE, ALPHA, TOKENS, BETA, REST, BEND, BY_SIZE, BY_TOKENS, U, V = range(len(HEAD))
SCATTERED = 3  # starts drawn around the prior, with a fixed seed
NARROW = 1e-9  # between the bounds of a parameter that is not free


@dataclass(frozen=True, eq=False)
class JointForm:
    """The form at given runs; losses in units of their mean.

    Attributes:
        weights_PD: mixtures.
        size_P, tokens_P: log N and log D from the smallest of the fit.
        kind: which parameters are free.
    """

    weights_PD: np.ndarray
    size_P: np.ndarray
    tokens_P: np.ndarray
    kind: str
    prior_K: np.ndarray = field(init=False)
    precision_K: np.ndarray = field(init=False)
    lower_K: np.ndarray = field(init=False)
    upper_K: np.ndarray = field(init=False)
    log_PD: np.ndarray = field(init=False)
    used_PD: np.ndarray = field(init=False)
    free_K: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        count = self.weights_PD.shape[1]
        effective, full = self.kind == "joint_effective", self.kind == "joint_full"
        # name: prior, precision, least, most, free; a third of the loss each for floor, size and tokens to begin with
        head = {
            "floor": (np.log(0.4), 0.1, -7.0, 0.0, True), "size": (np.log(0.2), 0.1, -9.0, 1.0, True),
            "alpha": (np.log(0.3), 1.0, np.log(0.02), np.log(2.0), True), "tokens": (np.log(0.2), 0.1, -9.0, 1.0, True),
            "beta": (np.log(0.3), 1.0, np.log(0.02), np.log(2.0), True), "rest": (0.0, 0.1, -9.0, 8.0, True),
            "bend": (np.log(0.5) if effective else 0.0, 1.0, np.log(0.03), np.log(8.0), effective),
            "by_size": (0.1 if effective else 0.0, 10.0, -0.2, 1.0, effective),
            "by_tokens": (0.1 if effective else 0.0, 10.0, -0.2, 1.0, effective),
            "u": (0.0, 3.0, -2.0, 2.0, full), "v": (0.0, 3.0, -2.0, 2.0, full),
        }  # fmt: skip
        tail = [(1.5 if not effective else 2.0, 0.3, -9.0, 12.0, True),
                (np.log(0.5) if not effective else 0.0, 1.0, np.log(0.1), np.log(1.5), not effective),
                (0.0, 1.0, -5.0, 5.0, full), (0.0, 1.0, -5.0, 5.0, full)]  # fmt: skip
        if not np.ptp(self.tokens_P):  # one number of tokens tells nothing of tokens
            for name in ("tokens", "beta", "by_tokens", "v"):
                prior = -9.0 if name == "tokens" else 0.0 if name != "beta" else np.log(0.3)
                head[name] = (prior, *head[name][1:4], False)
        rows = [head[name] for name in HEAD] + [row for row in tail for _ in range(count)]
        prior_K, precision_K, lower_K, upper_K, free_K = (np.array(column, float) for column in zip(*rows, strict=True))
        values = {
            "prior_K": prior_K, "precision_K": precision_K,
            "lower_K": np.where(free_K > 0, lower_K, prior_K - NARROW),
            "upper_K": np.where(free_K > 0, upper_K, prior_K + NARROW),
            "used_PD": self.weights_PD > 0, "free_K": free_K,
            "log_PD": np.log(np.where(self.weights_PD > 0, self.weights_PD, 1.0)),
        }  # fmt: skip
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def starts(self) -> np.ndarray:
        """From the prior, from slower powers with a mixture that matters more for small models, and scattered."""
        slow_K = self.prior_K.copy()
        slow_K[[FLOOR, ALPHA, BETA]] = np.log(0.2), np.log(0.15), np.log(0.15)
        slow_K[[U, V]] = 0.3
        scattered = np.random.default_rng(0).normal(0, 0.5, (SCATTERED, len(self.prior_K)))
        return np.clip(np.stack([self.prior_K, slow_K, *(self.prior_K + scattered)]), self.lower_K, self.upper_K)

    def values(self, theta_BK: np.ndarray) -> np.ndarray:
        """Predictions (B, P)."""
        return self._parts(theta_BK)["whole"]

    def _parts(self, theta_BK: np.ndarray) -> dict[str, np.ndarray]:
        count = self.weights_PD.shape[1]
        tail = theta_BK[:, len(HEAD) :].reshape(len(theta_BK), 4, count)
        bend_BD = np.exp(tail[:, 1])
        worth_BPD = np.exp(tail[:, 0][:, None, :] + bend_BD[:, None, :] * self.log_PD) * self.used_PD
        data_BP = np.exp(theta_BK[:, [REST]]) + worth_BPD.sum(axis=2)
        mixture_BP = np.exp(-np.exp(theta_BK[:, [BEND]]) * np.log(data_BP) - theta_BK[:, [BY_SIZE]] * self.size_P
                            - theta_BK[:, [BY_TOKENS]] * self.tokens_P)  # fmt: skip
        each = {}
        for name, row, power, scale, rate, place in (
            ("size", 2, U, SIZE, ALPHA, self.size_P), ("tokens", 3, V, TOKENS, BETA, self.tokens_P)
        ):  # fmt: skip
            inside_BPD = np.exp(tail[:, row])[:, None, :] * self.weights_PD
            inside_BP = inside_BPD.sum(axis=2)
            term_BP = np.exp(theta_BK[:, [scale]] + theta_BK[:, [power]] * np.log(inside_BP)
                             - np.exp(theta_BK[:, [rate]]) * place)  # fmt: skip
            each |= {name: term_BP, f"{name}_inside": inside_BP, f"{name}_parts": inside_BPD}
        whole_BP = np.exp(theta_BK[:, [FLOOR]]) + mixture_BP + each["size"] + each["tokens"]
        return each | {"whole": whole_BP, "mixture": mixture_BP, "data": data_BP, "worth": worth_BPD, "bend": bend_BD}

    def jacobian(self, theta_BK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Predictions (B, P) and derivatives (B, P, K)."""
        count, at = self.weights_PD.shape[1], len(HEAD)
        parts = self._parts(theta_BK)
        slope_BPK = np.empty((*parts["whole"].shape, theta_BK.shape[1]))
        slope_BPK[:, :, FLOOR] = np.exp(theta_BK[:, [FLOOR]])
        power_B1 = np.exp(theta_BK[:, [BEND]])
        by_data_BP = -parts["mixture"] * power_B1 / parts["data"]
        slope_BPK[:, :, REST] = by_data_BP * np.exp(theta_BK[:, [REST]])
        slope_BPK[:, :, BEND] = -parts["mixture"] * power_B1 * np.log(parts["data"])
        slope_BPK[:, :, BY_SIZE] = -parts["mixture"] * self.size_P
        slope_BPK[:, :, BY_TOKENS] = -parts["mixture"] * self.tokens_P
        slope_BPK[:, :, at : at + count] = by_data_BP[:, :, None] * parts["worth"]
        slope_BPK[:, :, at + count : at + 2 * count] = (
            slope_BPK[:, :, at : at + count] * parts["bend"][:, None, :] * self.log_PD
        )
        for name, begin, power, scale, rate, place in (
            ("size", at + 2 * count, U, SIZE, ALPHA, self.size_P),
            ("tokens", at + 3 * count, V, TOKENS, BETA, self.tokens_P),
        ):
            term_BP, inside_BP = parts[name], parts[f"{name}_inside"]
            slope_BPK[:, :, scale] = term_BP
            slope_BPK[:, :, rate] = -term_BP * np.exp(theta_BK[:, [rate]]) * place
            slope_BPK[:, :, power] = term_BP * np.log(inside_BP)
            share_BPD = parts[f"{name}_parts"] / inside_BP[:, :, None]
            slope_BPK[:, :, begin : begin + count] = (term_BP * theta_BK[:, [power]])[:, :, None] * share_BPD
        return parts["whole"], slope_BPK * self.free_K

    def slope(self, theta_BK: np.ndarray) -> np.ndarray:
        """Derivatives (B, D) by the weights of the first mixture."""
        count, at = self.weights_PD.shape[1], len(HEAD)
        parts = self._parts(theta_BK)
        tail = theta_BK[:, at:].reshape(len(theta_BK), 4, count)
        by_data_B1 = (-parts["mixture"] * np.exp(theta_BK[:, [BEND]]) / parts["data"])[:, :1]
        whole_BD = by_data_B1 * parts["worth"][:, 0] * parts["bend"] / np.maximum(self.weights_PD[0], 1e-9)
        for name, row, power in (("size", 2, U), ("tokens", 3, V)):
            outer_B1 = (parts[name] * theta_BK[:, [power]] / parts[f"{name}_inside"])[:, :1]
            whole_BD += outer_B1 * np.exp(tail[:, row])
        return whole_BD


@dataclass(frozen=True, eq=False)
class JointLaw:
    """A fitted joint law of B losses.

    Attributes:
        kind: of `KINDS`.
        theta_BK: coefficients.
        unit_B: mean of each loss; the coefficients are in its units.
        first: log N and log D that powers are counted from.
        tokens_vary: whether the fit saw more than one number of tokens.
    """

    kind: str
    theta_BK: np.ndarray
    unit_B: np.ndarray
    first: tuple[float, float]
    tokens_vary: bool

    def form(self, weights_PD: np.ndarray, size_P: np.ndarray, tokens_P: np.ndarray) -> JointForm:
        """The form at runs of given log N and log D."""
        tokens_P = tokens_P if self.tokens_vary else np.full(len(size_P), self.first[1])
        return JointForm(weights_PD, size_P - self.first[0], tokens_P - self.first[1], self.kind)

    def losses(self, weights_PD: np.ndarray, size_P: np.ndarray, tokens_P: np.ndarray) -> np.ndarray:
        """Losses (P, B) of runs."""
        return self.form(weights_PD, size_P, tokens_P).values(self.theta_BK).T * self.unit_B


@dataclass(frozen=True, eq=False)
class JointAt:
    """A joint law at one scale: a law of mixtures."""

    law: JointLaw
    size: float
    tokens: float

    @property
    def family(self) -> str:
        """The kind of joint law."""
        return self.law.kind

    def predict(self, weights_PD: np.ndarray) -> np.ndarray:
        """Losses (P, B)."""
        count = len(weights_PD)
        return self.law.losses(weights_PD, np.full(count, self.size), np.full(count, self.tokens))

    def gradient(self, weights_D: np.ndarray) -> np.ndarray:
        """Derivatives (B, D)."""
        at_D = np.maximum(weights_D, 1e-9)[None]
        form = self.law.form(at_D, np.array([self.size]), np.array([self.tokens]))
        return form.slope(self.law.theta_BK) * self.law.unit_B[:, None]

    def take(self, problems: Sequence[int]) -> "JointAt":
        """The law of some of the losses."""
        rows, law = list(problems), self.law
        part = JointLaw(law.kind, law.theta_BK[rows], law.unit_B[rows], law.first, law.tokens_vary)
        return JointAt(part, self.size, self.tokens)

    def to_json(self) -> dict[str, Any]:
        """The scale and the coefficients."""
        return {"family": self.family, "log_params": self.size, "log_tokens": self.tokens,
                "theta": self.law.theta_BK.tolist(), "unit": self.law.unit_B.tolist()}  # fmt: skip


def fit_joint(
    kind: str, weights_PD: np.ndarray, size_P: np.ndarray, tokens_P: np.ndarray, values_BP: np.ndarray,
    counts_BP: np.ndarray, penalties: Sequence[float] = PENALTIES,
) -> dict[float, JointLaw]:  # fmt: skip
    """Fit a joint law at every penalty, strong to weak, each from where the one before ended.

    Args:
        kind: of `KINDS`.
        weights_PD: mixtures.
        size_P: log N.
        tokens_P: log D; equal where it is not known.
        values_BP: positive losses.
        counts_BP: how often each run counts; 0 holds it out.
        penalties: weights of the pull towards the prior, per run.
    """
    seen_P = counts_BP.sum(axis=0) > 0
    first = (float(size_P[seen_P].min()), float(tokens_P[seen_P].min()))
    vary = bool(np.ptp(tokens_P[seen_P]) > 0)
    unit_B = (values_BP * counts_BP).sum(axis=1) / counts_BP.sum(axis=1)
    blank = JointLaw(kind, np.zeros((len(values_BP), 0)), unit_B, first, vary)
    form = blank.form(weights_PD[seen_P], size_P[seen_P], tokens_P[seen_P])
    share_BP = counts_BP[:, seen_P] / values_BP[:, seen_P] ** 2  # relative errors
    share_BP /= share_BP.sum(axis=1, keepdims=True)
    targets_BP = values_BP[:, seen_P] / unit_B[:, None]
    laws, theta_BK = {}, None
    for penalty in penalties:
        # a prior's precision in units of a variance of (1%)^2, the size of what joint laws leave
        problems = Problems(targets_BP, share_BP, 1e-4 * penalty / counts_BP.sum(axis=1))
        if theta_BK is None:
            fits = [minimise(form, problems, np.tile(start_K, (len(values_BP), 1))) for start_K in form.starts()]
            best_B = np.argmin(np.stack([cost_B for _, cost_B in fits]), axis=0)
            theta_BK = np.stack([theta for theta, _ in fits])[best_B, np.arange(len(values_BP))]
        else:
            theta_BK = minimise(form, problems, theta_BK)[0]
        assert np.isfinite(cost_of(form, problems, theta_BK)).all()
        laws[penalty] = JointLaw(kind, theta_BK, unit_B, first, vary)
    return laws
