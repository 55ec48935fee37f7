"""A small probe on statistics of the encoder's own ROI tokens: what the LLM's answers must not fall below.

Each of the five organs is called ill or not by a classifier on its tokens' mean, maximum, standard deviation and Cls;
from the five, a second one tells the tumor's organ or that there is none.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tumorchain_agent.training.phantom.patient import ORGANS
from tumorchain_agent.training.suite.answers import NONE
from tumorchain_agent.training.suite.finished import Features, OrganFeatures

FOLDS: Final = 5
LEAST: Final = 40
"""Patients to learn from, below which there is no probe."""
MLP_EPOCHS: Final = 100
PROBES: Final = ("logistic regression", "MLP")
_NOTHING: Final = -6.0
"""Log-odds of an organ that the model doesn't see."""
Array = NDArray[np.float64]


@dataclass(frozen=True)
class _Table:
    """Organs of patients, one a row."""

    x: Array
    """[n, features]; the last five tell which organ it is."""
    ill: NDArray[np.bool_]
    patient: NDArray[np.int64]
    organ: NDArray[np.int64]
    """Index into ``ORGANS``."""

    @classmethod
    def of(cls, lines: Sequence[Features]) -> _Table:
        rows = [
            (row, k, line.organs[organ], organ in line.abnormal)
            for row, line in enumerate(lines)
            for k, organ in enumerate(ORGANS)
            if organ in line.organs
        ]
        return cls(
            np.array([[*_vector(found), *np.eye(len(ORGANS))[k]] for _, k, found, _ in rows]),
            np.array([ill for *_, ill in rows]),
            np.array([row for row, *_ in rows]),
            np.array([k for _, k, *_ in rows]),
        )

    def where(self, rows: NDArray[np.bool_]) -> _Table:
        return _Table(self.x[rows], self.ill[rows], self.patient[rows], self.organ[rows])


def _vector(found: OrganFeatures) -> list[float]:
    return [*found.mean, *found.most, *found.sd, _log_odds(found.p_abnormal)]


def _log_odds(p: float) -> float:
    clipped = min(max(p, 1e-4), 1 - 1e-4)
    return float(np.log(clipped / (1 - clipped)))


def predict(name: str, learn: Sequence[Features], held_out: Sequence[Features]) -> list[str]:
    """Organ or ``no tumor`` of each held-out patient, by one of ``PROBES`` that learned from ``learn``."""
    table, test = _Table.of(learn), _Table.of(held_out)
    judge = _JUDGES[name]
    folds = np.random.default_rng(0).permutation(len(learn)) % FOLDS
    odds = np.full((len(learn), len(ORGANS)), _NOTHING)
    for fold in range(FOLDS):
        left_out = folds[table.patient] == fold
        part = table.where(left_out)
        odds[part.patient, part.organ] = judge(table.where(~left_out), part)
    truth = [line.facts.organ or NONE for line in learn]
    decide = _pipeline("logistic regression", 1.0).fit(odds, truth)
    unseen = np.full((len(held_out), len(ORGANS)), _NOTHING)
    unseen[test.patient, test.organ] = judge(table, test)
    return [str(each) for each in decide.predict(unseen)]


def _one_by_one(learn: _Table, test: _Table) -> Array:
    """A logistic regression for each organ: log-odds of the rows of ``test``."""
    found = np.full(len(test.x), _NOTHING)
    for k in range(len(ORGANS)):
        own, asked = learn.where(learn.organ == k), test.organ == k
        if asked.any() and len(set(own.ill.tolist())) == 2:
            model = _pipeline("logistic regression", 0.01).fit(own.x, own.ill)
            found[asked] = model.decision_function(test.x[asked])
    return found


def _together(learn: _Table, test: _Table) -> Array:
    """One MLP for all organs, strongly regularised, for a fixed number of epochs."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = _pipeline("MLP", 10.0).fit(learn.x, learn.ill)
    p = np.clip(model.predict_proba(test.x)[:, 1], 1e-4, 1 - 1e-4)
    odds: Array = np.log(p / (1 - p))
    return odds


_JUDGES: Final[dict[str, Callable[[_Table, _Table], Array]]] = dict(
    zip(PROBES, (_one_by_one, _together), strict=True)
)


def _pipeline(name: str, strength: float) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if name == "MLP":
        model = MLPClassifier(
            (32,), alpha=strength, learning_rate_init=3e-3, max_iter=MLP_EPOCHS, random_state=0
        )
    else:
        model = LogisticRegression(C=strength, max_iter=1000)
    return make_pipeline(StandardScaler(), model)
