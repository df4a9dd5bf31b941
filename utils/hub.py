"""Models of the Hugging Face Hub by their ids, and timm's weights, which lie there; in the Hub's
own cache.

What is in the cache is taken as it is, without asking the Hub.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any, NamedTuple

from undegrade.utils.files import read_object
from undegrade.utils.timm_folders import CONFIG, WEIGHTS, saved_weights, timm_config
from undegrade.utils.weights import hub_is_offline

log = logging.getLogger(__name__)

_PREFIXES = ("hf-hub:", "hf_hub:")  # the second is timm's older one
_ID = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?")
_TIMM = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)?")
_FILES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar", ".npz", ".yaml", ".yml")  # ends of paths, not of ids
_TIMM_KEY = "architecture"  # of timm's config.json
_OTHERS = {"_class_name": "diffusers", "model_type": "transformers"}  # keys of theirs
_PIPELINE = "model_index.json"
_TIMEOUT = 10.0  # seconds: huggingface_hub itself would try for half a minute


class HubId(NamedTuple):
    """`<owner>/<name>`, and a branch, tag or commit."""

    name: str
    revision: str = "main"


def hub_id(reference: str) -> HubId | None:
    """The id that a text means: `org/name`, `hf-hub:org/name`, each with `@revision` or without, or
    a name of timm such as `resnet18.a1_in1k` (without tag the weights that timm takes); None for
    other texts.

    Raises:
        ValueError: after `hf-hub:` stands no id; timm has no weights of that name on the Hub.
    """
    text = reference
    for prefix in _PREFIXES:
        text = text.removeprefix(prefix)
    match = _ID.fullmatch(text)
    if match and not (text == reference and text.endswith(_FILES)):
        return HubId(match["name"], match["revision"] or "main")
    if text != reference:
        raise ValueError(f"{reference}: after {_PREFIXES[0]} stands an id of the Hugging Face Hub, <owner>/<name>")
    return _id_of_timm(text) if _TIMM.fullmatch(text) else None


def _id_of_timm(name: str) -> HubId | None:
    if (known := timm_config(name)) is None and timm_config(name.partition(".")[0]) is None:
        return None
    if known is None or not known.hf_hub_id:
        from timm import list_pretrained

        tags = [one.partition(".")[2] for one in list_pretrained(f"{name.partition('.')[0]}.*")]
        there = f"it has the tags {', '.join(tags)}" if tags else "choose another network, or give a file and its network (arch)"
        raise ValueError(f"timm has no weights {name!r} on the Hugging Face Hub: {there}")
    return HubId(known.hf_hub_id)


def hub_checkpoint(of: HubId) -> Path:
    """The weights of a classifier, downloaded unless they are in the Hub's cache.

    Raises:
        ValueError: the repository holds several models.
        FileNotFoundError: see `hub_folder`.
    """
    folder = hub_folder(of)
    found = saved_weights(folder)
    others = sorted(folder.rglob("*.safetensors"))
    if found is None and len(others) != 1:
        there = ", ".join(str(path.relative_to(folder)) for path in others)
        raise ValueError(f"{of.name} of the Hugging Face Hub holds several models ({there}): name one of them, a file")
    return found or others[0]


def hub_folder(of: HubId) -> Path:
    """The files of a repository in the Hub's cache, downloaded unless they are there: of one that
    timm saved its configuration and weights, of others JSON, YAML and safetensors files.

    Raises:
        ValueError: it is a model of another program, or holds nothing that can be read.
        FileNotFoundError: the Hub has no such repository or revision, or not for this user; it does
            not answer, or HF_HUB_OFFLINE is set, and the cache lacks it. Each says the mend.
    """
    from huggingface_hub import snapshot_download  # here, since it takes half a second
    from huggingface_hub.errors import EntryNotFoundError, HTTPError, LocalEntryNotFoundError

    cached = _cached(of)
    if cached is not None:
        return cached
    names = _files_at_hub(of)
    log.info("%s: %s, into the Hub's cache", of.name, page(of))
    options: dict[str, Any] = {"repo_id": of.name, "revision": of.revision}
    try:
        first = [name for name in (CONFIG, _PIPELINE) if name in names]
        config = _config_in(Path(snapshot_download(**options, allow_patterns=first))) if first else {}
        program = "diffusers" if _PIPELINE in first else next((_OTHERS[key] for key in _OTHERS if key in config), None)
        if program is not None:
            raise ValueError(f"{of.name} of the Hugging Face Hub is a model of {program}, not a classifier: see {page(of)}")
        wanted = [name for name in WEIGHTS if name in names][:1] if _TIMM_KEY in config else _chosen(names)
        if not wanted:
            raise ValueError(
                f"{of.name} of the Hugging Face Hub holds no classifier that can be read, a {CONFIG} of timm beside "
                f"{' or '.join(WEIGHTS)}, or .safetensors files of this program (it has {', '.join(names[:10]) or 'nothing'})"
            )
        return Path(snapshot_download(**options, allow_patterns=wanted))
    except (LocalEntryNotFoundError, EntryNotFoundError, HTTPError, OSError) as error:
        said = " ".join(str(error).split())[:300]
        raise FileNotFoundError(f"{of.name} does not come from the Hugging Face Hub ({said}); {_otherwise(of)}") from error


def _chosen(names: list[str]) -> list[str]:
    """Of a repository that this program made, the files that are needed."""
    weights = any(name.endswith(".safetensors") for name in names)
    return [name for name in names if name.endswith((".json", ".yaml", ".safetensors"))] if weights else []


def _cached(of: HubId) -> Path | None:
    """The folder of the cache that has what `hub_folder` brings."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(of.name, revision=of.revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    return folder if _whole(folder) else None


def _whole(folder: Path) -> bool:
    return saved_weights(folder) is not None if _TIMM_KEY in _config_in(folder) else any(folder.rglob("*.safetensors"))


def _config_in(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    return read_object(path, "remove it from the Hub's cache") if path.is_file() else {}


def _files_at_hub(of: HubId) -> list[str]:
    """What the repository has, asked for once."""
    import requests
    from huggingface_hub import constants, get_token

    if hub_is_offline():
        raise FileNotFoundError(
            f"{of.name} is not in the Hub's cache, {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE is set; {_otherwise(of)}"
        )
    token = get_token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    address = f"{constants.ENDPOINT}/api/models/{of.name}" + (f"/revision/{of.revision}" if of.revision != "main" else "")
    try:
        answer = requests.get(address, headers=headers, timeout=_TIMEOUT)
    except requests.RequestException as error:
        reason = getattr(error.args[0] if error.args else None, "reason", error)
        raise FileNotFoundError(
            f"{of.name} is not in the Hub's cache, {constants.HF_HUB_CACHE}, and the Hub does not answer ({reason}); "
            f"{_otherwise(of)}"
        ) from error
    if answer.status_code in (401, 403, 404):
        at = "" if of.revision == "main" else f" at {of.revision}"
        raise FileNotFoundError(
            f"the Hugging Face Hub has no {of.name}{at}, or not for everybody: look at {page(of)}; what is private, or has terms "
            "to be accepted, needs `hf auth login` first"
        )
    if not answer.ok:
        raise FileNotFoundError(f"{of.name} does not come: the Hugging Face Hub answers {answer.status_code}; {_otherwise(of)}")
    return [one["rfilename"] for one in answer.json().get("siblings", [])]


def _otherwise(of: HubId) -> str:
    """How it gets to a machine without network, and what does without it."""
    last = of.name.rpartition("/")[2]
    return (
        f"where there is a network, run undegrade download {of.name} --to FOLDER, and name FOLDER/{last} here; or name a "
        "checkpoint of your own, or a file of weights and its network (arch)"
    )


def page(of: HubId) -> str:
    """Where people read about it."""
    return f"https://huggingface.co/{of.name}"
