"""Bar charts of accuracies, and training losses."""

from pathlib import Path

from utils.io import atomic_write

COLORS = {"base": "#9aa5b1", "raw": "#d9a441", "entigraph": "#2f6f9f", "synthetic": "#2f6f9f", "open": "#6b5b95"}
CHANCE_PERCENT = 25  # four options
GROUP_WIDTH = 0.8  # of the distance between two groups


def draw_accuracies(
    path: Path, groups: list[str], metrics: dict[str, list[dict]], labels: dict[str, str], title: str = ""
) -> None:
    """Write grouped bars with 95% intervals and the chance line as a PNG file.

    `metrics` maps a key of COLORS to one evaluation's metrics (`accuracy`, `ci95`) per group; `labels` maps the
    same keys to the texts of the legend.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    width = GROUP_WIDTH / len(metrics)
    for index, (name, values) in enumerate(metrics.items()):
        shift = (index - (len(metrics) - 1) / 2) * width
        heights = [100 * value["accuracy"] for value in values]
        below = [100 * (value["accuracy"] - value["ci95"][0]) for value in values]
        above = [100 * (value["ci95"][1] - value["accuracy"]) for value in values]
        style = {"width": 0.95 * width, "capsize": 5, "color": COLORS[name], "label": labels[name]}
        bars = axes.bar([group + shift for group in range(len(groups))], heights, yerr=[below, above], **style)
        axes.bar_label(bars, fmt="%.0f%%", label_type="center", color="white", fontsize=12)
    axes.axhline(CHANCE_PERCENT, color="black", linewidth=0.8, linestyle=":", label="chance")
    axes.set(ylabel="accuracy, %", ylim=(0, 100), title=title)
    axes.set_xticks(range(len(groups)), groups)
    figure.legend(frameon=False, loc="outside lower center", ncols=2)
    save(figure, path)


def draw_losses(path: Path, losses: dict[str, list[float]], labels: dict[str, str]) -> None:
    """Write the training loss by step of several runs as a PNG file; keys as for draw_accuracies."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3), layout="constrained")
    for name, values in losses.items():
        axes.plot(range(1, len(values) + 1), values, color=COLORS[name], label=labels[name], linewidth=1)
    axes.set(xlabel="step", ylabel="training loss, nats per token")
    axes.legend(frameon=False)
    save(figure, path)


def save(figure, path: Path) -> None:
    from matplotlib import pyplot

    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=150, metadata={"Software": None})
    pyplot.close(figure)
