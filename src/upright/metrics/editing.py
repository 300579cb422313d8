r"""Editing: is the new answer given where it should be, and is every other answer as it was before.

A question counts 1 where every token of its answer is the likeliest one (teacher-forced), and in ``_written`` where the
answer that is written out is the one that is wanted; a half-right answer is 0, since the right first half was given to
the model. What is wanted is the target in the first five, and the model's own answer before the edit in the others. An
edit has the mean over its questions in an environment:

========================  =================  ===============================================================
``reliability``           ``edit``           the request itself
``text_generality``       ``text``           other words
``image_generality``      ``image``          other pictures of the same thing
``joint_generality``      ``joint``          both
``portability``           ``portability``    what follows from the edit
``text_locality``         ``unrelated_text``
``image_locality``        ``unrelated_image``
``same_image``            ``same_image``     the same picture, another question: the hardest, and seldom reported
``other_image``           ``other_image``    another picture, the same question
``no_image``              ``no_image``       the question alone
========================  =================  ===============================================================

    edit_score = 3 / (1 / reliability + 1 / generality + 1 / locality)

with the mean of the three generalities and that of the text and image locality, over those that an edit has; 0 where
one of the three is 0, NaN where one is not measured: a model that answers the target to everything has a perfect
generality. ``worst_environment`` is the smallest of all but portability, which no edit was asked for.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike, NDArray

from upright.contract import InputError, Metric

__all__ = ["ENVIRONMENTS", "METRICS", "edit_values", "ordered_top10", "positionwise_top1"]

Array = NDArray[np.float64]

_NAMED = {
    "edit": ("reliability", "Reliability"),
    "text": ("text_generality", "Generality, other words"),
    "image": ("image_generality", "Generality, other pictures"),
    "joint": ("joint_generality", "Generality, both"),
    "portability": ("portability", "Portability"),
    "unrelated_text": ("text_locality", "Locality, text"),
    "unrelated_image": ("image_locality", "Locality, pictures"),
    "same_image": ("same_image", "Same picture, other question"),
    "other_image": ("other_image", "Other picture, same question"),
    "no_image": ("no_image", "No picture, same question"),
}
_ALL = (*_NAMED.values(), ("edit_score", "Edit score"), ("worst_environment", "Worst environment"))

ENVIRONMENTS: Mapping[str, str] = MappingProxyType({name: metric for name, (metric, _) in _NAMED.items()})
"""Which metric each environment of a test is measured by."""

METRICS: Mapping[str, Metric] = MappingProxyType(
    {name: Metric(name, margin=0.02, title=title) for name, title in _ALL}
    | {f"{name}_written": Metric(f"{name}_written", margin=0.02, title=f"{title}, written out") for name, title in _ALL}
)
"""What each value of an edit means: direction, bounds, margin and title."""


def edit_values(
    edit: Sequence[str], environment: Sequence[str], equal: ArrayLike, written: ArrayLike | None = None
) -> tuple[list[str], dict[str, Array]]:
    """Return the values of each edit from those of its questions.

    Parameters
    ----------
    edit, environment : sequence of str, length n
        Which edit each question belongs to, and which environment: a key of `ENVIRONMENTS`.
    equal, written : array of bool or float, shape (n,)
        1 where the answer is the one that is wanted, teacher-forced and written out; in [0, 1].

    Returns
    -------
    edits : list of str, length E
        In the order of their first question.
    values : dict of metric name to ndarray, shape (E,)
        NaN where an edit has no such environment.

    Raises
    ------
    InputError
        For lengths that differ, an environment that is not known, and values outside [0, 1].

    >>> edits, values = edit_values(["a"] * 4, ["edit", "text", "unrelated_text", "unrelated_text"], [1, 1, 1, 0])
    >>> edits, float(values["text_locality"][0]), float(values["edit_score"][0])
    (['a'], 0.5, 0.75)
    """
    edits, out = list(dict.fromkeys(edit)), dict[str, Array]()
    if odd := sorted(set(environment) - set(ENVIRONMENTS)):
        raise InputError(f"environment {odd[0]!r}", ", ".join(ENVIRONMENTS), "rename it")
    row = np.array([edits.index(one) for one in edit], dtype=np.int64)
    for suffix, given in (("", equal), ("_written", written)):
        if given is None:
            continue
        score = np.asarray(given, dtype=np.float64)
        if not len(edit) == len(environment) == score.size or not ((score >= 0) & (score <= 1)).all():
            got = f"{len(edit)} edits, {len(environment)} environments and values of shape {score.shape}"
            raise InputError(got, "one value in [0, 1] a question", "align them, and leave out what was not measured")
        own = {}
        for name, metric in ENVIRONMENTS.items():
            here = np.array([one == name for one in environment], dtype=bool)
            count, total = (np.bincount(row[here], weight, len(edits)) for weight in (None, score[here]))
            own[metric] = np.divide(total, count, out=np.full(len(edits), np.nan), where=count > 0)
        worst = np.fmin.reduce([value for metric, value in own.items() if metric != "portability"])
        general = _mean([own[f"{kind}_generality"] for kind in ("text", "image", "joint")])
        three = np.array([own["reliability"], general, _mean([own["text_locality"], own["image_locality"]])])
        with np.errstate(divide="ignore", over="ignore"):  # 1 / 0 is what makes the score 0
            own |= {"edit_score": 3.0 / (1.0 / three).sum(axis=0), "worst_environment": worst}
        out |= {name + suffix: value for name, value in own.items()}
    return edits, out


def _mean(values: Sequence[Array]) -> Array:
    """Mean over what is defined, shape (E,); NaN where nothing is."""
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
        return np.asarray(np.nanmean(values, axis=0))


def positionwise_top1(before: ArrayLike, after: ArrayLike) -> float:
    """Return the share of positions whose likeliest token is the same: text locality as EasyEdit's code has it.

    Ids of shape (T,), positions of the question included: a long question makes it large.
    """
    return _share(before, after, 1)


def ordered_top10(before: ArrayLike, after: ArrayLike) -> float:
    """Return the share of equal entries of the lists of ten likeliest tokens, in order: its image locality.

    Ids of shape (T, 10). Two tokens that change places are two misses, so it is much below `positionwise_top1`.
    """
    return _share(before, after, 2)


def _share(before: ArrayLike, after: ArrayLike, axes: int) -> float:
    one, other = np.asarray(before), np.asarray(after)
    if one.shape != other.shape or one.ndim != axes or not one.size:
        got = f"ids of shapes {one.shape} and {other.shape}"
        raise InputError(got, f"equal shapes of {axes} axes, not empty", "read the same positions before and after")
    return float((one == other).mean())
