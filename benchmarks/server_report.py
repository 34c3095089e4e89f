"""The figures of `bench_server.py` as a picture."""

from pathlib import Path
from typing import Any

from blockexport.report.style import ACCENT, BAD, GOOD, NEUTRAL, Theme, save_png

OURS = "priced"
_RIVAL = "slackfit"


def save_plot(path: Path, rows: list[dict[str, Any]]) -> None:
    """Effective quality and requests in time against load: our policy, SlackFit, and every fixed depth."""
    noises = list(dict.fromkeys(row["noise"] for row in rows))
    policies = sorted({row["policy"] for row in rows}, key=lambda policy: (policy != OURS, policy != _RIVAL, policy))
    colours = {OURS: GOOD, _RIVAL: ACCENT, "fixed:d12": BAD}

    def draw(figure: Any, _theme: Theme) -> None:
        panels = figure.subplots(1, len(noises), squeeze=False, sharey=True)[0]
        for noise, axes in zip(noises, panels, strict=True):
            for policy in policies:
                found = sorted(
                    (r for r in rows if (r["policy"], r["noise"]) == (policy, noise)), key=lambda r: r["load"]
                )
                loads, qualities = [[row[key] for row in found] for key in ("load", "effective_quality")]
                style = {"color": colours.get(policy, NEUTRAL), "zorder": 3 if policy == OURS else 2}
                axes.plot(loads, qualities, marker="o", label=policy, **style)
                if policy not in colours:
                    axes.annotate(policy.removeprefix("fixed:"), (loads[-1], qualities[-1]), fontsize=7)
            axes.set_title(noise)
            axes.set_xlabel("load")
            axes.set_ylim(bottom=0)
        panels[0].set_ylabel("effective quality")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)

    save_png(path, (7, 3.6), draw)
