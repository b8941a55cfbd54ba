"""Plots of a report. Matplotlib and scikit-learn are imported when a plot is drawn; no display is needed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.training.figures import ALL, Figure
from shared.training.protocols import Subjects

SHOWN = 1500  #: images on a map: with more, t-SNE takes minutes and the plot is no clearer
SEED = 0


def curves(rows: Sequence[Figure], ks: Sequence[int], path: Path) -> None:
    """Plot P@k over k: a line with its interval for each run, and dashed the random list of its protocol."""
    figure, axes = _axes()
    runs = list(dict.fromkeys((row.protocol, row.space) for row in rows))
    for number, (protocol, space) in enumerate(runs):
        of_k = {row.name: row for row in rows if (row.protocol, row.space, row.part) == (protocol, space, ALL)}
        points = [of_k[f"P@{k}"] for k in ks]
        colour = f"C{number % 10}"
        axes.plot(ks, [p.micro.mean for p in points], "o-", color=colour, label=f"{protocol}, {space}")
        axes.fill_between(ks, [p.micro.low for p in points], [p.micro.high for p in points], color=colour, alpha=0.15)
        axes.plot(ks, [p.random_micro for p in points], "--", color=colour, linewidth=0.8)
    axes.set(xscale="log", xlabel="k", ylabel="P@k (micro); dashed: random list", ylim=(0, 1.02))
    axes.set_xticks(ks, [str(k) for k in ks])
    axes.legend(fontsize=7)
    _save(figure, path)


def maps(subjects: Subjects, vectors: NDArray[Any], folder: Path) -> dict[str, str]:
    """Write pca.png and tsne.png and return their captions by name; write neither if all shown vectors are equal.

    The maps illustrate and enter no figure. Both are fitted to the shown images only.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    rng = np.random.default_rng(SEED)
    rows = np.sort(rng.permutation(len(vectors))[:SHOWN])
    shown = np.asarray(vectors[rows], np.float32)
    if min(shown.shape) < 2 or not np.ptp(shown, axis=0).any():
        return {}  # t-SNE divides by the standard deviation, and the resulting NaN ends the process
    components = PCA(n_components=min(50, *shown.shape), random_state=SEED)
    reduced = components.fit_transform(shown)
    share = float(components.explained_variance_ratio_[:2].sum())
    _scatter(subjects, rows, reduced[:, :2], folder / "pca.png")
    perplexity = min(30.0, max(1.0, (len(rows) - 1) / 3))
    # t-SNE's threads spin while waiting: on a busy machine two threads take twenty times as long as one
    with threadpool_limits(1):
        placed = TSNE(perplexity=perplexity, init="pca", random_state=SEED, n_jobs=1).fit_transform(reduced)
    _scatter(subjects, rows, placed, folder / "tsne.png")
    return {
        "pca": f"{len(rows)} images; two components hold {share:.0%} of the variance",
        "tsne": f"{len(rows)} images by {reduced.shape[1]} components; perplexity {perplexity:g}, seed {SEED}",
    }


def _scatter(subjects: Subjects, rows: NDArray[np.int64], places: NDArray[Any], path: Path) -> None:
    figure, axes = _axes()
    labels = subjects.labels[rows]
    for label in np.unique(labels):
        mine = places[labels == label]
        marker = "os^"[(label // 10) % 3]
        name = f"{subjects.classes[label]} ({len(mine)})".replace("$", r"\$")  # no formula, which may be malformed
        axes.scatter(mine[:, 0], mine[:, 1], s=9, color=f"C{label % 10}", marker=marker, alpha=0.7, label=name)
    axes.set(xticks=[], yticks=[])
    axes.legend(fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5))
    _save(figure, path)


def _axes() -> tuple[Any, Any]:
    """Return a figure and its axes, made without pyplot, so without global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 5), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _save(figure: Any, path: Path) -> None:  # noqa: ANN401 - a matplotlib figure
    figure.savefig(path, dpi=110)
