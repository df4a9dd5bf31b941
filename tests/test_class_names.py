"""Words for WordNet numbers."""

from __future__ import annotations

from timm.data import ImageNetInfo

from undegrade.utils.data.sources.class_names import class_words


def test_every_class_of_imagenet_has_a_word_of_its_own() -> None:
    classes = ImageNetInfo().label_names()
    words = class_words(classes)
    assert len(set(words)) == 1000 and words[0] == "tench" and words[998] == "ear"
    odd = {word for word in words if "," in word or "(" in word}
    assert odd == {"crane (n02012849)", "crane (n03126707)", "maillot, tank suit"}, "two have the names of others"


def test_words_tell_the_classes_that_are_there_apart() -> None:
    assert class_words(["n02012849", "n01440764"]) == ["crane", "tench"]
    assert class_words(["n01440764", "tench"]) == ["tench, Tinca tinca", "tench"]


def test_other_names_and_unknown_numbers_stay() -> None:
    assert class_words(["cat, or kitten", "dog"]) == ["cat, or kitten", "dog"]
    assert class_words(["n99999999", "n01440764"]) == ["n99999999", "tench"]
