"""The paper's claims, each held against rows: it holds, it does not, or the rows cannot tell."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from rdo_harness.metrics import bd_rate
from rdo_harness.observation import PAPER_STEP
from rdo_harness.results import Row
from rdo_harness.significance import Paired, item_correct, item_nats, mcnemar, paired_bootstrap

HOLDS, FAILS, OPEN = "holds", "does not hold", "cannot tell"
_ALPHA = 0.05
_POINT = 0.01
"""What counts as no loss: one point of accuracy, or one percent of cross entropy."""


@dataclass(frozen=True)
class Claim:
    """One claim on one architecture, task and seed, with the numbers that decide it."""

    text: str
    where: str
    verdict: str
    why: str


def judge(rows: Sequence[Row]) -> list[Claim]:
    """Every claim that the rows of a suite say something about; rows with an error are left out."""
    found = []
    kept = sorted((row for row in rows if "error" not in row), key=_where)
    for where, group in groupby(kept, key=_where):
        part = list(group)
        for claim in _CLAIMS:
            found += [Claim(text, where, verdict, why) for text, verdict, why in claim(part)]
    return found


_Found = Iterable[tuple[str, str, str]]


def compare_items(first: Row, second: Row) -> Paired | None:
    """Paired test on the test items that both rows have: of accuracy, or of nats where the metric is none."""
    correct = item_correct(first), item_correct(second)
    if first["metric_name"] == "accuracy" and correct[0] is not None and correct[1] is not None:
        return mcnemar(correct[0], correct[1])
    nats = item_nats(first), item_nats(second)
    if nats[0] is None or nats[1] is None:
        return None
    return paired_bootstrap(nats[0], nats[1])


def _during_against_after(rows: list[Row]) -> _Found:
    text = "training under a rate takes fewer bits than rounding afterwards, without loss"
    normal = _normal(rows)
    if not normal:
        return
    for row in _backslash(rows):
        bits = [best_bits(normal), best_bits(row)]
        loss, test = _loss(normal, row), compare_items(normal, row)
        told = f"{row['label']}, lambda {row['lam']:g}: {bits[0]:.2f} -> {bits[1]:.2f} bits, {_change(normal, row)}"
        chance = "" if test is None else f" (p = {test.p_value:.2g})"
        yield text, HOLDS if bits[1] < bits[0] and loss <= _POINT else FAILS, told + chance


def _saving(rows: list[Row]) -> _Found:
    """The claim as the abstract has it: against a fixed length, which only Exp-Golomb k = 0 is compared with."""
    normal = _normal(rows)
    if not normal:
        return
    for row in _backslash(rows):
        fixed, ours = normal["fixed_length_bits_per_parameter"], row["exp_golomb_k0_bits_per_parameter"]
        saved, loss = 1 - ours / fixed, _loss(normal, row)
        why = (
            f"{row['label']}, lambda {row['lam']:g}: {fixed:.2f} -> {ours:.2f} bits (-{saved:.0%}; "
            f"-{1 - best_bits(row) / best_bits(normal):.0%} with the best coder of both), {_change(normal, row)}"
        )
        verdict = HOLDS if saved >= 0.6 and loss <= _POINT else FAILS
        yield "60 to 90 % less than fixed length, without loss", verdict, why


def _small_lambda(rows: list[Row]) -> _Found:
    """The lambda is chosen on validation data, so that the test is one test and not one for each lambda."""
    normal, swept = _normal(rows), _backslash(rows)
    if not normal or len({row["lam"] for row in swept}) < 3:
        return
    best = min(swept, key=lambda row: row["validation_cross_entropy"])
    test = compare_items(normal, best)
    better = _loss(normal, best) < 0
    verdict = FAILS if not better else HOLDS if test and test.p_value < _ALPHA else OPEN
    chance = "" if test is None else f" (p = {test.p_value:.2g})"
    why = f"lambda {best['lam']:g}, the best on validation data: {_change(normal, best)}{chance}"
    yield "some lambda improves on normal training", verdict, why


def _pruning(rows: list[Row]) -> _Found:
    for share in (0.5, 0.8, 0.9):
        normal = _first(rows, lambda r, s=share: r["method"] == "pruning" and r.get("sparsity_target") == s)  # type: ignore[misc]
        ours = _first(rows, lambda r, s=share: r["method"] == "backslash-pruning" and r.get("sparsity_target") == s)  # type: ignore[misc]
        if normal and ours:
            losses = [_loss_of_compression(row) for row in (normal, ours)]
            verdict = HOLDS if losses[1] <= _POINT and losses[1] < losses[0] else FAILS
            why = f"loss against the unpruned model {losses[1]:+.3f}, after normal training {losses[0]:+.3f}"
            yield f"a model trained with BackSlash holds at {share:.0%} pruning", verdict, why


def _steps(rows: list[Row]) -> _Found:
    for method, whose in (("rtn", "after normal training"), ("backslash", "after BackSlash")):
        by_step = {row["step"]: row for row in rows if row["method"] == method and row.get("step")}
        if PAPER_STEP in by_step and 2.0**-12 in by_step and 2.0**-4 in by_step:
            fine, coarse = _loss(by_step[2.0**-12], by_step[PAPER_STEP]), _loss(by_step[2.0**-12], by_step[2.0**-4])
            why = f"loss against 2^-12: {fine:+.3f} at 2^-8, {coarse:+.3f} at 2^-4"
            yield f"steps down from 2^-8 make no difference {whose}", HOLDS if abs(fine) <= _POINT else FAILS, why
            yield f"the step 2^-4 destroys the model {whose}", HOLDS if coarse > 10 * _POINT else FAILS, why


def _shapes(rows: list[Row]) -> _Found:
    ours = next(iter(_backslash(rows)), None)
    for row in rows:
        if ours and row["method"] == "lp" and row.get("step") == PAPER_STEP:
            fewer, no_worse = best_bits(ours) < best_bits(row), _loss(row, ours) <= 0
            verdict = HOLDS if fewer and no_worse else FAILS if not fewer and not no_worse else OPEN
            why = f"{best_bits(ours):.2f} against {best_bits(row):.2f} bits, {_change(row, ours)}"
            yield f"the shape that follows the weights beats {row['label']}", verdict, why


def _best_order(rows: list[Row]) -> _Found:
    normal, ours = _normal(rows), _backslash(rows)
    for row, when in ((normal, "for normal training"), (ours[0] if ours else None, "after BackSlash")):
        if row:
            k0, best = row["exp_golomb_k0_bits_per_parameter"], row["exp_golomb_bits_per_parameter"]
            why = f"k = 0 takes {k0:.2f} bits, k = {row['exp_golomb_best_k']:.0f} takes {best:.2f}"
            yield f"k = 0 is the right Exp-Golomb code {when}", HOLDS if k0 <= 1.01 * best else FAILS, why


def _clipping(rows: list[Row]) -> _Found:
    """The paper does not state its eps; whether that matters."""
    by_eps = {row["eps"]: row for row in _backslash(rows) if row["apply"] == "gradient"}
    if len(by_eps) > 1:
        bits = [best_bits(row) for row in by_eps.values()]
        quality = [_loss(next(iter(by_eps.values())), row) for row in by_eps.values()]
        same = max(bits) <= 1.05 * min(bits) and max(quality) - min(quality) <= _POINT
        told = [f"eps {eps:g}: {best_bits(row):.2f} bits, {_quality(row)}" for eps, row in sorted(by_eps.items())]
        yield "eps makes no difference (5 % of the bits, one point)", HOLDS if same else FAILS, "; ".join(told)


def _relative_steps(rows: list[Row]) -> _Found:
    """At a fixed step, weights of a smaller scale take fewer bits; at steps relative to it they do not."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row.get("relative_step") and row["method"] in ("rtn", "backslash"):
            curves.setdefault(row["method"] if row["method"] == "rtn" else row["label"], []).append(
                (best_bits(row), row["cross_entropy"])
            )
    normal = curves.pop("rtn", [])
    for label, curve in curves.items() if normal else ():
        change = bd_rate(normal, curve)
        text = f"{label} takes fewer bits at steps relative to sigma, too"
        if change.percent is None:
            yield text, OPEN, f"no BD-rate: {change.reason}"
        else:
            why = f"BD-rate {change.percent:+.0f} % over {change.coverage:.0%} of the range of normal training"
            yield text, HOLDS if change.percent < 0 else FAILS, why


def _coupled(rows: list[Row]) -> _Found:
    by_form = {row["apply"]: row for row in reversed(_backslash(rows))}
    if {"gradient", "decoupled"} <= set(by_form):
        coupled, decoupled = by_form["gradient"], by_form["decoupled"]
        fewer, no_worse = best_bits(coupled) < best_bits(decoupled), _loss(decoupled, coupled) <= 0
        verdict = HOLDS if fewer and no_worse else FAILS if not fewer and not no_worse else OPEN
        told = [f"{row['label']}: {best_bits(row):.2f} bits, {_quality(row)}" for row in (coupled, decoupled)]
        yield "the rate in the gradient beats the authors' decoupled step", verdict, "; ".join(told)


_CLAIMS: tuple[Callable[[list[Row]], _Found], ...] = (
    _during_against_after,
    _saving,
    _small_lambda,
    _pruning,
    _steps,
    _shapes,
    _best_order,
    _clipping,
    _relative_steps,
    _coupled,
)


def _where(row: Row) -> str:
    return f"{row['architecture']} on {row['task']}, seed {row['seed']}"


def _normal(rows: list[Row]) -> Row | None:
    """Normal training, rounded to the paper's step."""
    return _first(rows, lambda row: row["method"] == "rtn" and row.get("step") == PAPER_STEP)


def _backslash(rows: list[Row]) -> list[Row]:
    """BackSlash in all its forms, rounded to the paper's step."""
    return [row for row in rows if row["method"] == "backslash" and row.get("step") == PAPER_STEP]


def _first(rows: list[Row], wanted: Callable[[Row], bool]) -> Row | None:
    return next((row for row in rows if wanted(row)), None)


def best_bits(row: Row) -> float:
    """Bits per coded parameter under the best coder, the best k of Exp-Golomb among them."""
    coders = ("fixed_length", "exp_golomb", "huffman", "rans")
    return min(float(row[f"{coder}_bits_per_parameter"]) for coder in coders)


def _is_accuracy(row: Row) -> bool:
    return "accuracy" in row["metric_name"]


def _loss(before: Row, after: Row) -> float:
    """What is lost from one row to another: accuracy as a share, or cross entropy relative to the first."""
    if _is_accuracy(before):
        return float(before["metric"] - after["metric"])
    return float(after["cross_entropy"] / before["cross_entropy"] - 1)


def _loss_of_compression(row: Row) -> float:
    uncompressed = {**row, "metric": row["uncompressed_metric"], "cross_entropy": row["uncompressed_cross_entropy"]}
    return _loss(uncompressed, row)


def _quality(row: Row) -> str:
    return f"accuracy {100 * row['metric']:.1f} %" if _is_accuracy(row) else f"{row['cross_entropy']:.3f} nats"


def _change(before: Row, after: Row) -> str:
    if _is_accuracy(before):
        return f"accuracy {100 * before['metric']:.1f} -> {100 * after['metric']:.1f} %"
    return f"cross entropy {before['cross_entropy']:.3f} -> {after['cross_entropy']:.3f} nats"
