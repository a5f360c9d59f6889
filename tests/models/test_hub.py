"""What is said and tried before weights are fetched; nothing here reaches a network."""

import logging
from typing import Any

import pytest
import timm
from huggingface_hub import constants

from vitslim.errors import ConfigError
from vitslim.models import hub
from vitslim.opening import open_model

NAME = "deit_small_patch16_224.fb_in1k"


class ConnectError(Exception):
    """As the hub's client of version 1 and later raises it."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that were asked, of a hub that answers nobody."""
    urls: list[str] = []

    def refuse(url: str, *, timeout: float) -> None:
        urls.append(url)
        raise ConnectError("Name or service not known")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "get_hf_file_metadata", refuse)
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *_, **__: None)
    monkeypatch.setattr(hub, "_PAUSE", 0.0)
    return urls


def no_model(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("timm was asked")


def test_without_network_two_attempts_and_a_sentence_are_all(
    asked: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(timm, "create_model", no_model)
    with caplog.at_level(logging.INFO, "vitslim"), pytest.raises(ConfigError) as caught:
        open_model("deit_small")
    assert len(asked) == 2
    assert asked[0].endswith(f"/timm/{NAME}/resolve/main/config.json")
    assert caplog.messages == [
        f"fetching {NAME} from huggingface.co; --weights FILE or --no-pretrained need no network"
    ]
    message = (
        f"the pretrained weights of {NAME} could not be fetched (huggingface.co cannot be reached: Name or service"
    )
    assert str(caught.value).startswith(message)
    assert "--no-pretrained" in str(caught.value)


def test_any_answer_of_the_hub_is_a_network(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(url: str, *, timeout: float) -> None:
        asked.append(url)
        raise LookupError("404")

    monkeypatch.setattr(hub, "get_hf_file_metadata", missing)
    monkeypatch.setattr(timm, "create_model", no_model)
    with pytest.raises(ConfigError, match="timm was asked"):
        open_model("deit_small")
    assert len(asked) == 1


@pytest.mark.parametrize("quiet", ["cached", "offline", "untrained", "builtin"])
def test_what_needs_no_fetch_asks_nobody(quiet: str, asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if quiet == "cached":
        monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *_, **__: "/cache/model.safetensors")
    if quiet == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.prepare_fetch("builtin" if quiet == "builtin" else NAME, pretrained=quiet != "untrained")
    assert asked == []


def test_a_hub_id_is_asked_for_its_description_even_untrained(asked: list[str]) -> None:
    with pytest.raises(ConfigError, match="cannot be reached"):
        hub.prepare_fetch("hf-hub:someone/model@v2", pretrained=False)
    assert asked[0].endswith("/someone/model/resolve/main/config.json")
