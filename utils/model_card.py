"""Model cards: the README.md of a folder that may be published. What stands in one was measured or
is said by the files themselves; what is not known is said to be unknown.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from undegrade.utils.yaml_trees import dump_yaml

HERE = "path/to/this/folder"  # in the lines that load it, where it is not on the Hub
USAGE = """import undegrade

system = undegrade.System.from_pretrained("{place}")
print(system.predict("photos", top=5).table())"""
_TASK = "image-classification"

_TEMPLATE = """---
{{ header }}
---

# {{ card.title }}

{% for line in card.about %}
{{ line }}

{% endfor %}
```python
{{ card.usage }}
```
{% if card.parts %}

## What it is made of

{% for part in card.parts %}
- {{ part }}
{% endfor %}
{% endif %}

## Results

{% if measured %}
Accuracy in % on {{ measured.dataset }}{{ measured.about }}; 95 % intervals:

| corruption | severity | images | accuracy | interval |
| --- | ---: | ---: | ---: | --- |
{% for row in measured.rows %}
| {{ row.corruption }} | {{ row.level }} | {{ row.images }} | {{ row.accuracy }} | {{ row.interval }} |
{% endfor %}
{% for note in measured.notes %}

{{ note }}
{% endfor %}

<details><summary>The evaluation's configuration, for test_ensemble.py -c evaluation.yaml</summary>

```yaml
{{ measured.configuration }}```

</details>
{% else %}
None were given when this folder was made: no accuracy is claimed.
{% endif %}

## Limits

{% for line in card.limits %}
- {{ line }}
{% endfor %}
- {{ "The results above are all that was measured; other data and other degradations were not." if measured else
     "Nothing here says how well it does on any data." }}

## Where it is from

Licence: {{ licence or "not stated; whoever publishes this folder has to choose one that the training data and the weights that \
it started from allow" }}.
{% if command %}

This folder was made by

```bash
{{ command }}
```
{% endif %}
{% for title, tree in card.configurations %}

<details><summary>{{ title }}</summary>

```yaml
{{ tree }}```

</details>
{% endfor %}
"""


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table of results, as it is printed; `value` is the accuracy in [0,1]."""

    corruption: str
    level: str
    images: int
    accuracy: str
    interval: str
    value: float


@dataclasses.dataclass(frozen=True)
class Measured:
    """What an evaluation found.

    Attributes:
        dataset: its name.
        split: of it.
        about: what else all rows have in common, to follow the data set's name.
        rows: a cell each, the mean last.
        notes: sentences below the table.
        configuration: of the evaluation, as YAML.
    """

    dataset: str
    split: str
    about: str
    rows: list[Row]
    notes: list[str]
    configuration: str


@dataclasses.dataclass(frozen=True)
class Card:
    """What a folder says of itself.

    Attributes:
        title: heading, and name in the list of results.
        about: paragraphs.
        usage: Python that loads it; `{place}` stands for the folder or the id on the Hub, `{timm}`
            for that as timm takes it.
        parts: what it is made of, a line each.
        limits: sentences.
        configurations: (title, tree) of what it was trained with.
        library: that loads it.
        tags: for the Hub's search.
    """

    title: str
    about: list[str]
    usage: str
    parts: list[str]
    limits: list[str]
    configurations: list[tuple[str, Any]] = dataclasses.field(default_factory=list)
    library: str = "undegrade"
    tags: tuple[str, ...] = ()


def make_card(
    card: Card, measured: Measured | None = None, licence: str | None = None, command: str = "", place: str = HERE
) -> ModelCard:
    """The card of a folder.

    Args:
        card: what the folder says of itself.
        measured: an evaluation of it; None: no figure is named.
        licence: identifier as the Hub knows it ("mit", "apache-2.0").
        command: that made the folder.
        place: id on the Hub, or a folder.
    """
    data = ModelCardData(
        library_name=card.library, pipeline_tag=_TASK, tags=[_TASK, "undegrade", "robustness", *card.tags], license=licence,
        model_name=card.title, eval_results=_results(measured) if measured else None,
    )  # fmt: skip
    trees = [(title, dump_yaml(tree)) for title, tree in card.configurations]
    usage = card.usage.format(place=place, timm=f"{'local-dir' if place == HERE else 'hf-hub'}:{place}")
    shown = dataclasses.replace(card, usage=usage, configurations=trees)
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)  # Markdown, not HTML
    values = {"header": data.to_yaml(), "card": shown, "measured": measured, "licence": licence, "command": command}
    return ModelCard(environment.from_string(_TEMPLATE).render(values))


def _results(measured: Measured) -> list[EvalResult]:
    """A result a cell; a data set without a page on the Hub has its own name for a type."""
    return [
        EvalResult(
            task_type=_TASK, dataset_type=measured.dataset.lower(), dataset_name=f"{measured.dataset}, {row.corruption}",
            dataset_config=" ".join(filter(None, [row.corruption, row.level])), dataset_split=measured.split,
            metric_type="accuracy", metric_name="accuracy", metric_value=row.value,
        )
        for row in measured.rows
    ]  # fmt: skip


def training_lines(description: dict[str, Any]) -> list[str]:
    """What a checkpoint's description says of its training, in words."""
    configuration = description.get("configuration") or {}
    data, loop = configuration.get("data") or {}, configuration.get("loop") or {}
    words: list[str] = []
    if data.get("dataset"):
        seen = "+".join(description.get("degradations") or []) or "clean images"
        words.append(f"trained on {data['dataset']} ({seen})")
    if (configuration.get("method") or {}).get("name"):
        words.append(f"method {configuration['method']['name']}")
    if loop.get("epochs"):
        words.append(f"{loop['epochs']} epochs, of which number {description.get('epoch')} was best on validation images")
    if "seed" in configuration:
        words.append(f"seed {configuration['seed']}")
    commit = (description.get("made_by") or {}).get("commit")
    return [*words, *([f"code {commit[:10]}"] if commit else [])]


def listed(names: Sequence[str], most: int = 10) -> str:
    """Names joined by commas, the first ones of many."""
    return ", ".join(names[:most]) + (f", ... ({len(names)})" if len(names) > most else "")
