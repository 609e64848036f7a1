"""Bar charts of accuracies, and training losses."""

from pathlib import Path

from utils.io import atomic_write

COLORS = {"base": "#9aa5b1", "raw": "#d9a441", "entigraph": "#2f6f9f", "synthetic": "#2f6f9f", "open": "#6b5b95"}
CHANCE_PERCENT = 25  # four options
GROUP_WIDTH = 0.8  # of the distance between two groups


def draw_accuracies(
    path: Path, groups: list[str], metrics: dict[str, list[dict]], labels: dict[str, str], title: str = ""
) -> None:
    """Write bars with 95% intervals and the chance line as a PNG file: in one group with a label under each bar, in
    several with a legend.

    `metrics` maps a key of COLORS to one evaluation's metrics (`accuracy`, `ci95`) per group; `labels` maps the
    same keys to short texts.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    width, ticks = GROUP_WIDTH / len(metrics), {}
    for index, (name, values) in enumerate(metrics.items()):
        shift = (index - (len(metrics) - 1) / 2) * width
        places = [group + shift for group in range(len(groups))]
        heights, below, above = percent_with_interval(values)
        style = {"width": 0.9 * width, "capsize": 5, "color": COLORS[name], "label": labels[name]}
        axes.bar(places, heights, yerr=[below, above], **style)
        for place, height, top in zip(places, heights, above, strict=True):
            axes.annotate(f"{height:.1f}%", (place, height + top), (0, 4), textcoords="offset points", ha="center")
        ticks |= dict.fromkeys(places, labels[name])
    axes.axhline(CHANCE_PERCENT, color="black", linewidth=0.8, linestyle=":")
    axes.text(1.01, CHANCE_PERCENT, "chance", transform=axes.get_yaxis_transform(), va="center")
    axes.set(ylabel="questions answered correctly, %", ylim=(0, 100))
    axes.set_title(title, fontsize="medium")
    axes.spines[["top", "right"]].set_visible(False)
    if len(groups) > 1:
        axes.set_xticks(range(len(groups)), groups)
        figure.legend(frameon=False, loc="outside lower center", ncols=2)
    else:
        axes.set_xticks(
            list(ticks), [label.replace(", ", ",\n").replace(" and ", " and\n") for label in ticks.values()]
        )
    save(figure, path)


def percent_with_interval(metrics: list[dict]) -> tuple[list[float], list[float], list[float]]:
    """Accuracies in percent, and how far their intervals reach below and above."""
    heights = [100 * one["accuracy"] for one in metrics]
    below = [100 * (one["accuracy"] - one["ci95"][0]) for one in metrics]
    above = [100 * (one["ci95"][1] - one["accuracy"]) for one in metrics]
    return heights, below, above


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
