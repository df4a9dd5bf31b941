"""Where the members of a system come from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from undegrade.models.classification.classifier import Classifier


@dataclasses.dataclass(frozen=True)
class Origin:
    """Of one member.

    Attributes:
        open: opens its classifier anew, as it was before it adapted itself.
        predictor: `name` and options.
        training: keys of the data set (`SourceConfig`) whose clean training images the predictor
            may ask for.
        digest: of checkpoint and predictor, as results files name it; "" where there is no
            checkpoint.
    """

    open: Callable[[], Classifier]
    predictor: dict[str, Any]
    training: dict[str, Any] | None = None
    digest: str = ""
