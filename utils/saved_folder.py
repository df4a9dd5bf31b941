"""Saving to a folder and to the Hugging Face Hub, by the words that its users know:
`save_pretrained`, `from_pretrained`, `push_to_hub`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import ModelCard, ModelHubMixin

from undegrade.utils.files import replacing
from undegrade.utils.model_card import Card, Measured, make_card

T = TypeVar("T", bound="SavedFolder")


class SavedFolder(ModelHubMixin):
    """Base of what can be saved; a subclass writes its files (`_save_pretrained`), opens them
    (`open_folder`), and says what the card says (`card`).

    A folder holds safetensors, JSON, YAML and README.md, the model card; nothing in it is code.
    """

    _hub_mixin_config: Any = {}  # noqa: RUF012  a subclass writes its own config.json

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | Path, *, repo_id: str | None = None, push_to_hub: bool = False,
        model_card_kwargs: dict[str, Any] | None = None, config: Any = None, **push_to_hub_kwargs: Any,
    ) -> str | None:  # fmt: skip
        """Write the folder, all of it or nothing.

        Args:
            save_directory: a folder that is not there, or is empty.
            repo_id: on the Hub (default: the folder's name).
            push_to_hub: publish it, too.
            model_card_kwargs: of `generate_model_card`.
            config: not used; huggingface_hub passes it.
            push_to_hub_kwargs: of `push_to_hub`.

        Returns:
            Address of the commit on the Hub, None without `push_to_hub`.

        Raises:
            ValueError: the folder holds something; what cannot be saved says why.
        """
        folder = Path(save_directory)
        check_free(folder)
        with replacing(folder) as temporary:
            super().save_pretrained(temporary, model_card_kwargs=model_card_kwargs)
        if not push_to_hub:
            return None
        return self.push_to_hub(repo_id or folder.name, model_card_kwargs=model_card_kwargs, **push_to_hub_kwargs)

    def push_to_hub(self, repo_id: str, *, model_card_kwargs: dict[str, Any] | None = None, **options: Any) -> str:  # type: ignore[override]
        """Publish the folder as `<owner>/<name>`; `options` (private, token, branch, create_pr,
        commit_message, ...) are huggingface_hub's. Returns the address of the commit.
        """
        told = {"place": repo_id, **(model_card_kwargs or {})}
        return str(super().push_to_hub(repo_id, model_card_kwargs=told, **options))

    @classmethod
    def _from_pretrained(
        cls: type[T], *, model_id: str, revision: str | None, cache_dir: str | Path | None, force_download: bool,
        local_files_only: bool, token: str | bool | None, **options: Any,
    ) -> T:  # fmt: skip
        if Path(model_id).is_dir():
            return cls.open_folder(Path(model_id), **options)
        from huggingface_hub import snapshot_download

        folder = snapshot_download(
            model_id, revision=revision, cache_dir=cache_dir, force_download=force_download, local_files_only=local_files_only,
            token=token, allow_patterns=["*.json", "*.yaml", "*.safetensors"],
        )  # fmt: skip
        return cls.open_folder(Path(folder), **options)

    @classmethod
    def open_folder(cls: type[T], folder: Path, **options: Any) -> T:
        """What `save_pretrained` wrote."""
        raise NotImplementedError

    def card(self) -> Card:
        """What the folder says of itself."""
        raise NotImplementedError

    def generate_model_card(self, **options: Any) -> ModelCard:
        """The card: `licence` (identifier as the Hub knows it), `command` (that made the folder),
        `place` (id on the Hub), `measured` (`utils.model_card.Measured`).
        """
        measured: Measured | None = options.pop("measured", None)
        return make_card(self.card(), measured, **options)


def check_free(folder: Path) -> None:
    """Raise ValueError unless nothing lies at the path, or an empty folder."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ValueError(f"{folder} holds something already: choose another folder, or remove it")
