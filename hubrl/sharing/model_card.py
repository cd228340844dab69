"""Model cards: a repository's README.md with the metadata that Hugging Face reads."""

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gymnasium import spaces

from hubrl.formats.cards import SourceCard
from hubrl.formats.schema import write_yaml
from hubrl.formats.spaces import describe

TASK = re.compile(r"[A-Za-z0-9_.:/-]+")
"""A Gymnasium id, with its module. A card may be a stranger's: no other text becomes code."""

LICENCE = re.compile(r"[a-z0-9][a-z0-9.-]*")

LIBRARY = "hubrl"

TAGS = ("reinforcement-learning", "deep-reinforcement-learning", "stable-baselines3", LIBRARY)

SAFE = (
    "Weights are safetensors and cards are YAML: reading them executes nothing, and every weight "
    "file's sha256 is checked."
)


def hub_model_card(repository: str, cards: Sequence[SourceCard], licence: str | None = None) -> str:
    """The model card of a hub.

    Args:
        repository: `owner/name`.
        cards: The sources' cards, in order.
        licence: The hub's licence; by default the one that all its sources have.
    """
    repository = repository.removeprefix("hf://")
    tasks = [f'"{card.task}"' for card in cards if card.task and TASK.fullmatch(card.task)]
    usage = [
        f'hub = hubrl.Hub.load("hf://{repository}")',
        f"model = PPO(env={tasks[0] if tasks else 'env'}, **hub.agent(PPO))",
        "model.learn(100_000, callback=hubrl.HubCallback())",
    ]
    body = [
        f"# {repository.rpartition('/')[2]}",
        f"A hub of {len(cards)} pretrained agents for transfer with hubrl and stable-baselines3. "
        f"{SAFE}",
        "## Use",
        _code(["import hubrl", "from stable_baselines3 import PPO", "", *usage]),
        "## Sources",
        _sources(cards),
        *_notes(cards),
    ]
    return _front(repository, cards, cards, licence) + "\n\n".join(body) + "\n"


def agent_model_card(
    repository: str,
    agent: SourceCard,
    sources: Sequence[SourceCard],
    config: Mapping[str, Any],
    *,
    licence: str | None = None,
    curve: str | None = None,
    video: str | None = None,
) -> str:
    """The model card of a trained agent.

    Args:
        repository: `owner/name`.
        agent: The agent's card, with its returns.
        sources: Cards of the sources that it learned from.
        config: The config of its training.
        licence: The agent's licence; by default the one that all its sources have.
        curve: Name of the picture of its learning curve, if there is one.
        video: Name of a video of it, if there is one.
    """
    repository = repository.removeprefix("hf://")
    learned = f"a hub of {len(sources)} agents" if sources else "no hub"
    body = [
        f"# {repository.rpartition('/')[2]}",
        f"An agent for {_cell(agent.task)}, trained by {_cell(agent.algorithm)} with {learned} "
        f"(method `{config.get('method', 'hub-pathway')}`). Return: {_returns(agent)}. {SAFE}",
        "## Use",
        _code(
            [
                "import hubrl",
                "",
                f'agent = hubrl.load_agent("hf://{repository}")',
                "action, _ = agent.predict(observation, deterministic=True)",
            ]
        ),
    ]
    if curve:
        body += ["## Learning curve", f"![Return by environment steps]({curve})"]
    if video:
        body += ["## Video", f"[The agent at its task]({video})"]
    if sources:
        body += ["## Sources", _sources(sources), *_notes(sources)]
    body += ["## Config", _fenced("yaml", write_yaml(dict(config)).strip())]
    return _front(repository, [agent], sources, licence) + "\n\n".join(body) + "\n"


def _front(
    repository: str,
    measured: Sequence[SourceCard],
    sources: Sequence[SourceCard],
    licence: str | None,
) -> str:
    """The metadata, between lines of dashes."""
    named = [card for card in measured if card.task and TASK.fullmatch(card.task)]
    tasks = dict.fromkeys(_bare_task(card.task or "") for card in named)
    results = [_result(card) for card in named if card.return_mean is not None]
    known = licence or _common_licence(sources)
    data: dict[str, Any] = {"library_name": LIBRARY, "tags": [*TAGS, *tasks]}
    if known:
        data["license"] = known
    if results:
        data["model-index"] = [{"name": repository.rpartition("/")[2], "results": results}]
    return f"---\n{write_yaml(data)}---\n\n"


def _result(card: SourceCard) -> dict[str, Any]:
    """One measured return, as the `model-index` has it."""
    task = _bare_task(card.task or "")
    reward = {"type": "mean_reward", "name": f"mean_reward of {card.name}", "verified": False}
    return {
        "task": {"type": "reinforcement-learning", "name": "reinforcement-learning"},
        "dataset": {"name": task, "type": task},
        "metrics": [{**reward, "value": f"{card.return_mean:.2f} +/- {card.return_std or 0:.2f}"}],
    }


def _bare_task(task: str) -> str:
    """A Gymnasium id without the module that registers it and without its namespace."""
    return task.rpartition(":")[2].rpartition("/")[2]


def _common_licence(cards: Sequence[SourceCard]) -> str | None:
    """The licence that all sources have, as Hugging Face names it; `other` if they differ."""
    named = {(card.licence or "").strip().lower() for card in cards}
    if not cards or named == {""}:
        return None
    only = named.pop() if len(named) == 1 else ""
    return only if LICENCE.fullmatch(only) else "other"


def _sources(cards: Iterable[SourceCard]) -> str:
    columns = (
        "source", "algorithm", "observes", "acts", "task", "return", "steps", "licence", "origin"
    )  # fmt: skip
    rows = [
        (
            card.name,
            card.algorithm,
            describe(card.observations),
            "none" if card.actions is None else describe(_action_space(card)),
            card.task,
            _returns(card),
            card.steps,
            card.licence or "not stated",
            card.origin,
        )
        for card in cards
    ]
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _action_space(card: SourceCard) -> spaces.Space[Any]:
    assert card.actions is not None
    return card.actions


def _notes(cards: Iterable[SourceCard]) -> list[str]:
    lines = [f"- **{card.name}**: {_cell(card.notes)}" for card in cards if card.notes]
    return ["\n".join(lines)] if lines else []


def _returns(card: SourceCard) -> str:
    if card.return_mean is None:
        return "not measured"
    episodes = f" over {card.episodes} episodes" if card.episodes else ""
    return f"{card.return_mean:.1f} ± {card.return_std or 0:.1f}{episodes}"


def _cell(value: object) -> str:
    """A value in a cell of a Markdown table."""
    text = "" if value is None else html.escape(str(value), quote=False)
    return " ".join(text.replace("|", "\\|").split())


def _code(lines: Iterable[str]) -> str:
    return _fenced("python", "\n".join(lines))


def _fenced(language: str, text: str) -> str:
    """A block of code, whose fence is longer than any in the text."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(longest + 1, 3)
    return f"{fence}{language}\n{text}\n{fence}"
