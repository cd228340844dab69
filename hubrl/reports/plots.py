"""Plotly figures of a run."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hubrl.errors import BadConfig
from hubrl.reports.run_log import RunLog, Series, aligned, binned, in_words
from hubrl.training.pathway_figures import pathway_colors

try:
    import plotly.graph_objects as go
    from plotly.offline import get_plotlyjs
except ImportError as error:
    raise BadConfig(
        f"A report needs a package that is not installed ({error}); install hubrl[report]."
    ) from error

if TYPE_CHECKING:
    from hubrl.experiments.statistics import Estimate  # which needs scipy

AGENT = "#b3123f"
"""Colour of the agent's own returns."""

CURVE_POINTS = 60
"""Points of a training curve."""

LAYOUT: dict[str, Any] = {
    "template": "plotly_white",
    "margin": {"l": 60, "r": 20, "t": 10, "b": 45},
    "height": 380,
    "hovermode": "x unified",
    "legend": {"orientation": "h", "y": -0.2, "x": 0, "traceorder": "normal"},
    "font": {"family": "system-ui, sans-serif", "size": 13},
}


def script() -> str:
    """Plotly's JavaScript, to be inlined once in a page."""
    source: str = get_plotlyjs()
    return source


def figure(traces: Sequence[Any], x: str, y: str, **layout: Any) -> go.Figure:
    """A figure in the style of the pages."""
    made = go.Figure(list(traces))
    made.update_layout(**{**LAYOUT, **layout})
    made.update_xaxes(title=x, rangemode="tozero")
    made.update_yaxes(title=y)
    return made


def div(made: go.Figure, name: str) -> str:
    """A figure as HTML, without Plotly's script."""
    html: str = made.to_html(
        full_html=False,
        include_plotlyjs=False,
        div_id=name,
        config={"displayModeBar": False, "responsive": True},
    )
    return html


def line(steps: Sequence[float], values: Sequence[float], name: str, color: str) -> Any:
    """A line over steps."""
    return go.Scatter(x=steps, y=values, name=name, mode="lines", line={"color": color, "width": 2})


def interval(one: "Estimate", name: str, color: str) -> Any:
    """A point with its interval, in a row of its own."""
    spread = {
        "type": "data",
        "symmetric": False,
        "array": [one.high - one.value],
        "arrayminus": [one.value - one.low],
    }
    return go.Scatter(
        x=[one.value],
        y=[name],
        error_x=spread,
        mode="markers",
        marker={"color": color, "size": 10},
        name=name,
    )


def returns(log: RunLog) -> go.Figure:
    """Evaluations and training episodes over steps, with the level of every source untouched."""
    steps, evaluated = log.evaluations
    curve = binned(log.training_curve, CURVE_POINTS, log.config.steps)
    traces = [
        go.Scatter(
            x=curve.steps,
            y=curve.values,
            name="training episodes",
            mode="lines",
            line={"color": AGENT, "width": 1, "dash": "dot"},
        )
    ]
    if len(steps):
        traces += _with_spread(steps, evaluated)
    colors = pathway_colors(log.sources)
    for name, episodes in log.levels.items():
        if episodes:
            level = float(np.mean(episodes))
            traces.append(
                go.Scatter(
                    x=[0, log.config.steps],
                    y=[level, level],
                    name=f"{name}, untouched",
                    mode="lines",
                    line={"color": colors[name], "width": 2, "dash": "dash"},
                )
            )
    return figure(traces, "environment steps", "return")


def _with_spread(steps: np.ndarray, evaluated: np.ndarray) -> list[go.Scatter]:
    mean, spread = evaluated.mean(axis=1), evaluated.std(axis=1)
    around = [*(mean + spread), *(mean - spread)[::-1]]
    return [
        go.Scatter(
            x=[*steps, *steps[::-1]],
            y=around,
            fill="toself",
            fillcolor="rgba(179, 18, 63, 0.12)",
            line={"width": 0},
            hoverinfo="skip",
            showlegend=False,
        ),
        go.Scatter(
            x=steps,
            y=mean,
            name="evaluations of the agent",
            mode="lines+markers",
            line={"color": AGENT, "width": 3},
        ),
    ]


def stacked(series: Mapping[str, Series], y: str) -> go.Figure:
    """Shares over steps as stacked areas, one a pathway."""
    steps, values = aligned(series)
    colors = pathway_colors(list(values))
    traces = [
        go.Scatter(
            x=steps,
            y=shares,
            name=name,
            mode="lines",
            line={"width": 0.5, "color": colors[name]},
            fillcolor=colors[name],
            stackgroup="one",
        )
        for name, shares in values.items()
    ]
    made = figure(traces, "environment steps", y, height=320)
    made.update_yaxes(range=[0, 1], tickformat=".0%")
    return made


def lines(series: Mapping[str, Series], y: str, sources: Sequence[str]) -> go.Figure:
    """Scalars over steps as lines, one an arm."""
    colors = pathway_colors([*sources, *series])
    traces = [
        line(one.steps, one.values, in_words(name), colors[name]) for name, one in series.items()
    ]
    return figure(traces, "environment steps", y, height=340)
