"""A cascade on recorded answers: accept a weak model's answer after checking its working, or pay for a strong one?

RouteLLM's GSM8K records hold each question with the texts and the correctness of Mixtral-8x7B and
GPT-4. A logistic regression over `working.py` (the question and the weak answer; nothing of
the strong one) is fitted on one half of the questions and says on the other who answers. APGR as
RouteLLM computes it: the area under accuracy over the share of strong calls, the strong call
thresholds at the deciles of the scores, 0 for always weak, 1 for always strong in the mean.
Every question costs one weak call, which routers that see the question alone do not pay.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.common import finish, print_table
from benchmarks.working import final, measure, sums
from kitbash_ray.bounds import lowest_threshold

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.intp]

NAME = "gsm8k_cascade"
FOLDER = Path(os.environ.get("KITBASH_BENCH_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
FILE = "routellm_gsm8k_part.csv"
WEAK, STRONG = "mistralai/Mixtral-8x7B-Instruct-v0.1", "gpt-4-1106-preview"
#: The best router of the RouteLLM paper on GSM8K (arXiv 2406.18665): over all its rows, before any answer.
PUBLISHED = 0.622
#: What APGR is aimed at.
TARGET = 0.75
BUDGETS = (0.01, 0.02, 0.05, 0.10)
#: How strongly weights are held back, as scikit-learn's C. The fitted half chooses by cross-validation.
STRENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0)
FOLDS = 5
#: Random halvings beside the fixed one, each judged both ways.
HALVINGS, QUICK_HALVINGS = 20, 4


@dataclass(frozen=True)
class Records:
    """One entry for each question. The strong model's side is for judging only."""

    prompts: list[str]
    answers: list[str]
    features: Floats
    weak: Bools
    strong: Bools

    def fixed_half(self) -> Bools:
        """The questions that the headline fits on: half of them, by the hash of the prompt."""
        return np.array([hashlib.sha256(prompt.encode()).digest()[0] % 2 == 0 for prompt in self.prompts])


def read_records(path: Path) -> Records:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    prompts, answers = [row["prompt"] for row in rows], [row[WEAK + "_response"] for row in rows]
    features = np.array([measure(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)])
    weak, strong = (np.array([row[model] == "True" for row in rows]) for model in (WEAK, STRONG))
    return Records(prompts, answers, features, weak, strong)


def fit(features: Floats, right: Bools) -> Any:
    """A model whose `predict_proba` says how likely a weak answer is right."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    search = GridSearchCV(LogisticRegression(max_iter=1000), {"C": list(STRENGTHS)}, cv=FOLDS, scoring="neg_log_loss")
    return make_pipeline(StandardScaler(), search).fit(features, right)


def confidences(model: Any, features: Floats) -> Floats:
    found: Floats = model.predict_proba(features)[:, 1]
    return found


def left_out(features: Floats, right: Bools) -> Floats:
    """Each answer's confidence from a fit on the other folds."""
    from sklearn.model_selection import StratifiedKFold

    found = np.zeros(len(right))
    for taught, asked in StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(features, right):
        found[asked] = confidences(fit(features[taught], right[taught]), features[asked])
    return found


def curve(scores: Floats, weak: Bools, strong: Bools) -> tuple[Floats, Floats]:
    """Share of strong calls and accuracy, at each decile of `scores`: who scores high goes to the strong model."""
    deciles = np.quantile(scores, np.linspace(0, 1, 11))
    calls = [scores >= decile for decile in deciles[:-1]] + [scores > deciles[-1]]
    points = sorted((called.mean(), np.where(called, strong, weak).mean()) for called in calls)
    shares, accuracies = zip(*points, strict=True)
    return np.array(shares), np.array(accuracies)


def apgr(scores: Floats, weak: Bools, strong: Bools) -> float:
    """Average performance gap recovered: (AUC - AUC of weak) / (AUC of strong - AUC of weak)."""
    shares, accuracies = curve(scores, weak, strong)
    area = float(((accuracies[1:] + accuracies[:-1]) / 2 * np.diff(shares)).sum())
    span = float(shares[-1] - shares[0])
    return (area - float(weak.mean()) * span) / (float(strong.mean() - weak.mean()) * span)


def share_for_half(scores: Floats, weak: Bools, strong: Bools) -> float:
    """CPT50: the share of strong calls that recovers half of the gap between the models."""
    shares, accuracies = curve(scores, weak, strong)
    return float(np.interp((weak.mean() + strong.mean()) / 2, accuracies, shares))


def area_under_roc(scores: Floats, wrong: Bools) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(wrong, scores))


def hand_rule(answers: list[str]) -> Floats:
    """Nothing fitted: a sum that does not come out or no final answer first, then the longest answer."""
    broken = [final(answer) is None or any(not step.holds for step in sums(answer)) for answer in answers]
    return np.array([1e6 * bad + len(answer) for bad, answer in zip(broken, answers, strict=True)])


def halvings(count: int, questions: int) -> Iterator[tuple[Rows, Rows]]:
    """(fitted, judged) for `count` random halvings, each both ways."""
    generator = np.random.default_rng(0)
    for _ in range(count):
        order = generator.permutation(questions)
        first, second = order[: questions // 2], order[questions // 2 :]
        yield first, second
        yield second, first


def budget_cells() -> list[tuple[str, float, int, float, float]]:
    """(benchmark, error budget, accepted, observed error, coverage) of weak answers; empty without the data.

    The threshold comes from left-out confidences of one half and is judged on the other.
    """
    if not (FOLDER / FILE).exists():
        return []
    records = read_records(FOLDER / FILE)
    fitted, judged = records.fixed_half(), ~records.fixed_half()
    known = left_out(records.features[fitted], records.weak[fitted])
    asked = confidences(fit(records.features[fitted], records.weak[fitted]), records.features[judged])
    cells = []
    for budget in BUDGETS:
        accepted = asked >= lowest_threshold(known, records.weak[fitted], budget).value
        error = float((~records.weak[judged][accepted]).mean()) if accepted.any() else 0.0
        cells.append((NAME, budget, int(accepted.sum()), error, float(accepted.mean())))
    return cells


def routers(records: Records, judged: Bools, fitted_scores: Floats) -> dict[str, Floats]:
    """The scores of each way to choose, on the judged half."""
    weak, strong = records.weak[judged], records.strong[judged]
    tie = np.random.default_rng(1).random(len(weak)) / 10
    return {
        "longest prompt first": np.array([float(len(p)) for p, at in zip(records.prompts, judged, strict=True) if at]),
        "hand rule": hand_rule([a for a, at in zip(records.answers, judged, strict=True) if at]),
        "fitted": fitted_scores,
        "knows the weak answer": ~weak + tie,
        "oracle": strong.astype(float) - weak + tie,
    }


def compare(records: Records) -> dict[str, float]:
    """The fixed halving: every way to choose beside the fitted one, as a table and as metrics."""
    fitted, judged = records.fixed_half(), ~records.fixed_half()
    weak, strong = records.weak[judged], records.strong[judged]
    model = fit(records.features[fitted], records.weak[fitted])
    confidence = confidences(model, records.features[judged])
    generator = np.random.default_rng(2)
    random = float(np.mean([apgr(generator.random(len(weak)), weak, strong) for _ in range(500)]))
    rows: list[tuple[object, ...]] = [("random, mean of 500", f"{random:.3f}", "", ""), ("published", PUBLISHED, "", "")]
    metrics = {"random": random}
    for name, scores in routers(records, judged, 1 - confidence).items():
        metrics[name.replace(" ", "_")] = apgr(scores, weak, strong)
        half, roc = share_for_half(scores, weak, strong), area_under_roc(scores, ~weak)
        rows.append((name, f"{apgr(scores, weak, strong):.3f}", f"{half:.1%}", f"{roc:.3f}"))
    metrics["apgr"], metrics["auc"] = metrics.pop("fitted"), area_under_roc(1 - confidence, ~weak)
    metrics["share_for_half"] = share_for_half(1 - confidence, weak, strong)
    # A score that only ranks wrong weak answers gains in proportion to its AUC over 0.5.
    metrics["auc_for_target"] = 0.5 + 0.5 * (TARGET - 0.5) / (metrics["knows_the_weak_answer"] - 0.5)
    bins = np.clip((confidence * 10).astype(int), 0, 9)
    metrics["ece"] = sum(abs(float((confidence - weak)[bins == at].mean())) * float((bins == at).mean()) for at in set(bins))
    title = f"{len(weak)} questions, fitted on the other {fitted.sum()}"
    print_table(title, ("who goes to the strong model", "APGR", "strong calls for half the gap", "AUC, weak is wrong"), rows)
    return metrics


def repeat(records: Records, count: int) -> dict[str, float]:
    """The fitted cascade over `count` random halvings, so that the figure is no luck of one."""
    found = []
    for taught, asked in halvings(count, len(records.weak)):
        model = fit(records.features[taught], records.weak[taught])
        scores = 1 - confidences(model, records.features[asked])
        found.append(apgr(scores, records.weak[asked], records.strong[asked]))
    mean, deviation = float(np.mean(found)), float(np.std(found))
    row = (len(found), f"{mean:.3f}", f"{deviation:.3f}", f"{min(found):.3f}", f"{max(found):.3f}")
    print_table("Random halvings, each both ways", ("judged halves", "APGR", "sd", "least", "most"), [row])
    return {"apgr_repeated": mean, "apgr_repeated_sd": deviation}


def keep_budgets() -> dict[str, float]:
    cells = budget_cells()
    rows = [(budget, accepted, f"{error:.3f}", f"{coverage:.3f}") for _, budget, accepted, error, coverage in cells]
    print_table("error_budget: weak answers accepted of the judged half", ("budget", "accepted", "error", "coverage"), rows)
    metrics: dict[str, float] = {}
    for _, budget, _, error, coverage in cells:
        metrics |= {f"error_budget_{budget}_error": error, f"error_budget_{budget}_coverage": coverage}
    return metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer random halvings")
    parser.add_argument("--judge", type=Path, help="also fit on all rows and judge on those of this file")
    options = parser.parse_args()
    if not (FOLDER / FILE).exists():
        print(f"skipped: no {FILE} in {FOLDER}; set KITBASH_BENCH_DATA to its folder")
        return
    records = read_records(FOLDER / FILE)
    metrics = compare(records) | repeat(records, QUICK_HALVINGS if options.quick else HALVINGS) | keep_budgets()
    if options.judge:
        other, model = read_records(options.judge), fit(records.features, records.weak)
        metrics["apgr_other_file"] = apgr(1 - confidences(model, other.features), other.weak, other.strong)
    finish(NAME, {name: round(value, 4) for name, value in metrics.items()}, {"apgr": (">=", TARGET)})


if __name__ == "__main__":
    main()
