"""Names of ImageNet's classes: numbers in WordNet, such as n01440764, and words for them."""

from __future__ import annotations

import collections
import re
from collections.abc import Sequence

_NUMBER = re.compile(r"n\d{8}")


def timm_classes(count: int) -> list[str] | None:
    """The classes of a network of timm with so many outputs, by their numbers in WordNet: those of
    ImageNet-1k, -12k, -21k or -22k; None for other counts.
    """
    from timm.data import ImageNetInfo  # here, since it takes seconds
    from timm.data.imagenet_info import infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": count})
    return None if subset is None else list(ImageNetInfo(subset).label_names())


def wordnet_numbers(classes: Sequence[str], words: Sequence[str]) -> list[str]:
    """The classes, where one of them has a word (`class_words`) that is not its name; else none."""
    return list(classes) if any(name != word for name, word in zip(classes, words, strict=True)) else []


def class_words(classes: Sequence[str]) -> list[str]:
    """A word for each class: of a WordNet number that timm knows (those of ImageNet's 21,843
    classes) its first name that no other of `classes` has, as far as there is one, of everything
    else the class itself.

    Args:
        classes: their names, each once.

    Returns:
        As many words, all different. Of two classes with the same names, such as the crane that
        flies and the one that lifts, they end with the number.
    """
    if not any(_NUMBER.fullmatch(name) for name in classes):
        return list(classes)
    from timm.data import ImageNetInfo  # here, since it takes seconds

    info = ImageNetInfo()

    def known(name: str) -> str:
        try:
            return str(info.label_name_to_description(name)) if _NUMBER.fullmatch(name) else name
        except KeyError:
            return name

    all_names = [known(name) for name in classes]
    names = [text.split(", ") if text != name else [name] for text, name in zip(all_names, classes, strict=True)]
    firsts = collections.Counter(each[0] for each in names)
    words = [each[0] if firsts[each[0]] == 1 else text for each, text in zip(names, all_names, strict=True)]
    found = collections.Counter(words)
    return [word if found[word] == 1 else f"{word} ({name})" for word, name in zip(words, classes, strict=True)]
