"""A system that is ready: classifiers, what adapts the images that some of them look at, and the
rule that makes one answer of theirs.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from undegrade.answers import Explanation, Prediction, Predictions
from undegrade.evaluation.config import SystemConfig
from undegrade.evaluation.ensemble import check_rule, cpu_batch
from undegrade.evaluation.fitted.rule import FittedRule, first_other, two_sides
from undegrade.evaluation.fitted.signals import columns, member_signals, pixel_signals
from undegrade.evaluation.predict import member_logits, system_scores
from undegrade.evaluation.predictors import Frozen, Predictor, build_predictor
from undegrade.evaluation.surroundings import Surroundings
from undegrade.origin import Origin
from undegrade.pictures import Images, Picture, pictures
from undegrade.utils.choices import check_choice
from undegrade.utils.data.pixels import to_unit
from undegrade.utils.data.sources.class_names import class_words, wordnet_numbers
from undegrade.utils.data.sources.images import Resize, center_crop
from undegrade.utils.data.sources.registry import SourceConfig
from undegrade.utils.data.views import RAW
from undegrade.utils.saved_folder import SavedFolder
from undegrade.view_adapter import ViewAdapter

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

    from undegrade.utils.model_card import Card

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Seen:
    """A batch, and what a system makes of it.

    Attributes:
        batch: the images.
        images: what the classifiers see, uint8 [B,3,S,S] by view.
        logits: [B,K] by member.
        scores: [B,K], rows that sum to 1.
        restored: bool [B], of a system with a gate; else None.
    """

    batch: list[Picture]
    images: dict[str, Tensor]
    logits: dict[str, Tensor]
    scores: Tensor
    restored: Tensor | None


class System(SavedFolder):
    """What `load` and `wrap` return. `save_pretrained`, `from_pretrained` and `push_to_hub` are
    huggingface_hub's (docs/hub.md).

    Attributes:
        name: of the system.
        classes: names of the classes; the number of a class is its place.
        words: the same, in words where their names are numbers in WordNet (`class_words`).
        rule: how the members come to one answer, and their names in its order.
        members: what turns images into logits, by name.
        views: what each member looks at: "raw", or a key of `adapters`.
        adapters: by view.
        image_size: side of the classifiers' images in pixels.
        resize: to what the shorter side of an image is brought before the centre is cut; None: to
            `image_size`.
        fitted: the rule's numbers, of the rules `gate` and `fitted`.
        batch_size: images that are classified at a time.
        origins: where members come from, where that is known.
    """

    def __init__(
        self, name: str, classes: Sequence[str], rule: SystemConfig, members: Mapping[str, Predictor], views: Mapping[str, str],
        adapters: Mapping[str, ViewAdapter], image_size: int, resize: Resize | None = None, fitted: FittedRule | None = None,
        batch_size: int = 64, origins: Mapping[str, Origin] | None = None,
    ) -> None:  # fmt: skip
        check_rule(rule.rule, members, name)
        self.name, self.classes, self.rule, self.fitted = name, list(classes), rule, fitted
        self.words = class_words(self.classes)
        self.members, self.views, self.adapters = dict(members), dict(views), dict(adapters)
        self.image_size, self.resize, self.batch_size = image_size, resize, batch_size
        self.origins = dict(origins or {})
        self._wnids = wordnet_numbers(self.classes, self.words)
        self.reset()

    def __repr__(self) -> str:
        looks = ", ".join(f"{member} on {self.views[member]}" for member in self.members)
        return f"System({self.name!r}: {self.rule.rule} of {looks}; {len(self.classes)} classes, {self.image_size} px)"

    def predict(self, images: Images, top: int = 5) -> Predictions:
        """The best classes of each image.

        Members that adapt themselves go on from where the images before have brought them; `reset`
        starts them anew.

        Args:
            images: a path, a folder, a Pillow image, a tensor [3,H,W] or [B,3,H,W], an array
                [H,W,3] or [B,H,W,3] (uint8 in 0..255, or floating point in [0,1]), or an iterable
                of these, which is read a batch at a time.
            top: classes an image, at least 1 (at most all of them are returned).

        Returns:
            A list, a `Prediction` an image in their order. Files that are no images are left out,
            named in a warning and in its `broken`.

        Raises:
            FileNotFoundError: a path that does not exist.
            ValueError: a folder without images, what is no image (says what is taken), `top` below
                1, or no image that can be read.
        """
        if top < 1:
            raise ValueError(f"top {top}: give at least 1")
        broken: list[str] = []
        rows = [row for seen in self.look(images, broken) for row in self._best(seen.batch, seen.scores, seen.restored, top)]
        if broken and not rows:
            raise ValueError(f"none of the images can be read, e.g. {broken[0]}")
        if broken:
            log.warning("left out %d images that cannot be read:\n  %s", len(broken), "\n  ".join(broken))
        return Predictions(rows, broken)

    def adapt(self, images: Images, view: str | None = None) -> list[Image.Image]:
        """The adapted images, at the adapter's size, without those that cannot be read.

        Args:
            images: see `predict`.
            view: whose, where the system has several.

        Raises:
            ValueError: the system adapts no images, or has several views and none is named; see
                `predict`, too.
        """
        if not self.adapters:
            raise ValueError(
                f"{self.name} looks at images as they are: load it with adapter=..., a name or a YAML (docs/tutorial.md)"
            )
        if view is None and len(self.adapters) > 1:
            raise ValueError(f"{self.name} has several views: name one, view={next(iter(self.adapters))!r}")
        one = self.adapters[check_choice(view or next(iter(self.adapters)), self.adapters, "view", self.name)]
        broken: list[str] = []
        made = [image for batch in self._batches(images, broken) for image in one.adapt(batch)]
        if broken:
            log.warning("left out %d images that cannot be read:\n  %s", len(broken), "\n  ".join(broken))
        return made

    def explain(self, image: Images, top: int = 5) -> Explanation:
        """How the system comes to its answer on one image.

        Args:
            image: one, as `predict` takes it.
            top: classes of each answer.

        Raises:
            ValueError: none or several images; see `predict`, too.
        """
        broken: list[str] = []
        found = list(itertools.islice(pictures(image, broken), 2))
        if len(found) != 1:
            raise ValueError(broken[0] if broken else "explain takes one image: give a file, a Pillow image, a tensor [3,H,W]")
        seen = self._see(found)
        own = {
            name: self._best(found, logits.softmax(1), None, top, "raw" if self.views[name] == RAW else "adapted")[0]
            for name, logits in seen.logits.items()
        }
        shown = {view: Image.fromarray(pixels[0].movedim(0, -1).numpy()) for view, pixels in seen.images.items()}
        answer = self._best(found, seen.scores, seen.restored, top)[0]
        return Explanation(answer, shown.pop(RAW), shown, own, self._gate(seen))

    def reset(self) -> None:
        """Let members that adapt themselves forget all images."""
        for predictor in self.members.values():
            predictor.reset()

    def with_tta(self, method: str, training: str | None = None, **options: Any) -> System:
        """A system whose classifiers adapt themselves to the images that they see, batch by batch;
        this one stays as it is.

        Args:
            method: of `list_predictors()`, such as "tent" (docs/systems/tta.md).
            training: data set or image folder whose clean training images some methods need.
            options: of the method.

        Raises:
            ValueError: an unknown method or option (with the closest), a member that adapts itself
                already, a rule that was fitted to frozen members, or images that are needed and
                not given.
        """
        if self.fitted is not None:
            raise ValueError(
                f"the rule of {self.name} was fitted to its members as they are: choose a system without a fitted rule"
            )

        def open_training() -> Any:
            if training is None:
                raise ValueError(f'with_tta({method!r}, training="Digits") names a data set or an image folder')
            return SourceConfig(dataset=training).open("train")

        members: dict[str, Predictor] = {}
        origins: dict[str, Origin] = {}
        for name, predictor in self.members.items():
            if not isinstance(predictor, Frozen):
                raise ValueError(f"member {name!r} of {self.name} adapts itself already")
            given = {"name": method, **options}
            classifier = copy.deepcopy(predictor.classifier)
            members[name], _ = build_predictor(given, f"with_tta({method!r})", classifier, Surroundings(open_training))
            kept = predictor.classifier
            origins[name] = Origin(lambda kept=kept: kept, given, None if training is None else {"dataset": training})  # type: ignore[misc]
        return System(
            f"{self.name} with {method}", self.classes, self.rule, members, self.views, self.adapters, self.image_size, self.resize,
            None, self.batch_size, origins,
        )  # fmt: skip

    def _save_pretrained(self, save_directory: Path) -> None:
        from undegrade.saving import save_system  # it opens systems, too

        save_system(save_directory, self)

    @classmethod
    def open_folder(cls, folder: Path, device: str | None = None) -> System:  # type: ignore[override]
        """What `save_pretrained` wrote; `device` as `load` takes it."""
        from undegrade.saving import open_saved

        return open_saved(folder, device)

    def card(self) -> Card:
        """What its folder says of itself."""
        from undegrade.saving import system_card

        return system_card(self)

    def generate_model_card(self, *, results: str | Path | None = None, row: str | None = None, **options: Any) -> ModelCard:
        """The model card, for `model_card_kwargs` of `save_pretrained` and `push_to_hub`.

        Args:
            results: results.json of an evaluation of this system; without it no figure is named.
            row: name of the system there (default: this one's, or the only one of its members).
            options: `licence`, `command`, `place`; see `utils.model_card.make_card`.

        Raises:
            ValueError: results of other weights, another rule or other adapted images.
        """
        from undegrade.measured import read_measured

        measured = None if results is None else read_measured(Path(results), self, row)
        return super().generate_model_card(measured=measured, **options)

    def scores(self, images: Images, framed: bool = False) -> Iterator[Tensor]:
        """Float64 [B,K] of batches of images, rows that sum to 1.

        Args:
            images: see `predict`.
            framed: they are squares that are cut already.
        """
        return (seen.scores for seen in self.look(images, [], framed))

    def look(self, images: Images, broken: list[str], framed: bool = False) -> Iterator[Seen]:
        """All that there is to know of the images, a batch at a time as it is asked for.

        Args:
            images: see `predict`.
            broken: files that are no images are added to it, with the reason, and left out.
            framed: they are squares that are cut already.
        """
        return (self._see(batch, framed) for batch in self._batches(images, broken))

    def _batches(self, images: Images, broken: list[str]) -> Iterator[list[Picture]]:
        free = all(not predictor.stateful and predictor.device.type == "cpu" for predictor in self.members.values())
        size = min(self.batch_size, cpu_batch(self.image_size)) if free else self.batch_size
        stream = pictures(images, broken)
        while batch := list(itertools.islice(stream, size)):
            yield batch

    def _see(self, batch: list[Picture], framed: bool = False) -> Seen:
        resize = None if framed else self.resize
        made = {RAW: [one.image for one in batch]} | {view: one.adapt(batch) for view, one in self.adapters.items()}
        images = {
            view: torch.from_numpy(np.stack([np.asarray(center_crop(one, self.image_size, resize)) for one in of])).movedim(-1, 1)
            for view, of in made.items()
        }
        looked = {name: images[self.views[name]] for name in self.members}
        logits = member_logits(self.members, looked)
        scores, restored = system_scores(self.rule, self.members, looked, logits, self.rule.members, self.fitted)
        return Seen(batch, images, logits, scores / scores.sum(1, keepdim=True), restored)

    def _best(self, batch: Sequence[Picture], scores: Tensor, restored: Tensor | None, top: int, way: str = "") -> list[Prediction]:
        values, order = scores.sort(dim=1, descending=True, stable=True)
        looks = {self.views[name] == RAW for name in self.rule.members}
        way = way or ("both" if len(looks) > 1 else "raw" if True in looks else "adapted")
        ways = [way] * len(batch) if restored is None else ["adapted" if yes else "raw" for yes in restored.tolist()]
        return [
            Prediction(
                one.name, labels, [self.words[k] for k in labels], shares, went, [self._wnids[k] for k in labels if self._wnids]
            )
            for one, labels, shares, went in zip(batch, order[:, :top].tolist(), values[:, :top].tolist(), ways, strict=True)
        ]

    def _gate(self, seen: Seen) -> dict[str, float | None] | None:
        if self.fitted is None or self.fitted.gate is None:
            return None
        gate, names = self.fitted.gate, self.rule.members
        image, adapted = (to_unit(seen.images[self.views[names[place]]]) for place in (0, first_other(self.fitted.members)))
        pixels = pixel_signals(gate.signals, image, adapted, self.members[names[0]])
        sides = two_sides(self.fitted.members, self.fitted.pool, torch.stack([seen.logits[name] for name in names]))
        signals = torch.cat([pixels, member_signals(gate.signals, *sides)], 1)
        values: dict[str, float | None] = dict(zip(columns(gate.signals), signals[0].tolist(), strict=True))
        return {**values, "odds": float(gate.odds(signals)[0]), "threshold": gate.threshold}
