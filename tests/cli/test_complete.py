"""What the Tab key offers."""

from collections.abc import Callable

import pytest

from vitslim.cli.main import main
from vitslim.names import ALIASES

OFFERED: dict[str, list[str]] = {
    "conv": ["convert"],
    "convert deit_s": ["deit_small"],
    "convert vit_tiny_patch16_2": ["vit_tiny_patch16_224"],
    "convert x --method s": ["skipat", "sparsifiner", "sret"],
    "list methods e": ["evo_vit"],
    "export out --to t": ["tensorrt", "torch-export", "triton-server"],
    "export out --to a": ["aotinductor"],
    "train out --dev": ["--device"],
    "train out --device c": ["cpu", "cuda"],
    "bench su": ["suite"],
    "bench deit_t": ["deit_tiny"],
    "bench deit_tiny dinov3_s": ["dinov3_small"],
}


@pytest.mark.parametrize("line", OFFERED)
def test_the_shell_is_offered_what_can_follow(
    line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_VITSLIM_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", f"vitslim {line}")
    monkeypatch.setenv("COMP_CWORD", str(len(line.split())))
    with pytest.raises(SystemExit):
        main([])
    assert sorted(capsys.readouterr().out.split()) == sorted(OFFERED[line])


def test_an_alias_stands_before_timms_own_names() -> None:
    from vitslim.cli.complete import models

    offer: Callable[[str], list[str]] = models
    assert offer("") == ["builtin", *ALIASES]
