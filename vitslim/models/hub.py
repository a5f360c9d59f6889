"""Fetching weights: said before it begins, and given up at once where there is no network."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache

from vitslim.errors import ConfigError

_WEIGHTS = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_DESCRIPTION = "config.json"
HUB = ("hf-hub:", "hf_hub:")
_PAUSE = 1.0  # seconds before the hub is tried once more
# Of httpx and of requests, one of which the hub's client speaks through, whatever its version.
_NO_CONNECTION = ("ConnectError", "ConnectTimeout", "ConnectionError")

_log = logging.getLogger(__name__)


def prepare_fetch(name: str, *, pretrained: bool) -> None:
    """Say what timm is about to fetch from the hub for a model, and refuse where the hub cannot be reached.

    The hub's own client says nothing before its first retries, and then retries for half a minute per file. What lies
    in the cache is not fetched.

    Raises:
        ConfigError: no connection at two attempts; a slow network is left to the hub's client.
    """
    found = _repository(name, pretrained)
    if found is None or constants.HF_HUB_OFFLINE:
        return
    repository, _, revision = found.partition("@")
    files = _WEIGHTS if pretrained else (_DESCRIPTION,)
    if any(isinstance(try_to_load_from_cache(repository, file, revision=revision or None), str) for file in files):
        return
    host = constants.ENDPOINT.partition("://")[2]
    without = "" if name.startswith(HUB) else "; --weights FILE or --no-pretrained need no network"
    _log.info("fetching %s from %s%s", name, host, without)
    if _refusal(repository) is not None:
        time.sleep(_PAUSE)
        if (refusal := _refusal(repository)) is not None:
            raise unfetchable(name, f"{host} cannot be reached: {refusal}")


def hub_description(name: str) -> Any:
    """config.json of a repository; ``None`` where it cannot be had, of which whoever fetches the weights says more."""
    repository, _, revision = name.removeprefix("hf-hub:").removeprefix("hf_hub:").partition("@")
    is_cached = isinstance(try_to_load_from_cache(repository, _DESCRIPTION, revision=revision or None), str)
    if not is_cached and not constants.HF_HUB_OFFLINE and _refusal(repository) is not None:
        return None
    try:
        return json.loads(Path(hf_hub_download(repository, _DESCRIPTION, revision=revision or None)).read_text("utf-8"))
    except (OSError, ValueError):  # among them all errors of the hub's client
        return None


def unfetchable(name: str, reason: str) -> ConfigError:
    """What is said where the pretrained weights of a model cannot be had."""
    return ConfigError(
        f"the pretrained weights of {name} could not be fetched ({reason}). Without network: pass a local file "
        "with --weights FILE (weights=), or fill the hub's offline cache once (HF_HOME, then HF_HUB_OFFLINE=1), "
        "or start untrained with --no-pretrained (pretrained=False)"
    )


def _repository(name: str, pretrained: bool) -> str | None:
    """Where on the hub timm looks for a model; ``None`` where it looks nowhere."""
    scheme = next((scheme for scheme in HUB if name.startswith(scheme)), None)
    if scheme is not None:
        return name.removeprefix(scheme)
    config = timm.get_pretrained_cfg(name, allow_unregistered=True) if pretrained else None
    return None if config is None else config.hf_hub_id


def _refusal(repository: str) -> str | None:
    """Why no connection came about; ``None`` if one did, whatever was answered."""
    try:
        get_hf_file_metadata(hf_hub_url(repository, _DESCRIPTION), timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception as error:  # the hub's client will meet it again and say what it is
        return str(error) if type(error).__name__ in _NO_CONNECTION else None
    return None
