"""Every kernel compiles for every architecture without a GPU, in processes of their own, where nothing interprets."""

import json
import os
import subprocess
import sys

import pytest
import torch

from vitslim.errors import ConfigError

pytest.importorskip("triton")
from vitslim.kernels.triton import compiling

# One form of each kernel, or all forms.
COMPILE = """
import json, sys
from vitslim.kernels.triton.compiling import compile_form, forms

capability, every = int(sys.argv[1]), sys.argv[2] == "every"
chosen = {form.name if every else form.kernel.__name__: form for form in reversed(forms())}
made = [compile_form(form, capability) for form in chosen.values()]
print(json.dumps([[one.form, one.registers, one.spilled_bytes, one.shared_bytes, len(one.cubin)] for one in made]))
"""
MOST_SPILLED_BYTES = 192  # of a thread


def compiled(capability: int, what: str) -> list[list]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "error", "-c", COMPILE, str(capability), what]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def require_sound(made: list[list]) -> None:
    assert made
    for form, registers, spilled, shared, code in made:
        assert 0 < registers <= 255, form
        assert spilled <= MOST_SPILLED_BYTES, form
        # What every architecture has for one program.
        assert shared <= 99 * 1024, form
        assert code > 1000, form


def test_every_kernel_compiles_for_an_h100() -> None:
    made = compiled(90, "one")
    require_sound(made)
    kernels = {name.split()[0] for name, *_ in made}
    skip_function, selection = {"depthwise_kernel", "tap_gradient_kernel"}, {"class_row_kernel", "rank_kernel"}
    assert kernels == {"tile_attention_kernel", "move_kernel"} | skip_function | selection


@pytest.mark.slow
@pytest.mark.parametrize("capability", compiling.CAPABILITIES)
def test_every_form_compiles_and_fits_every_architecture(capability: int) -> None:
    require_sound(compiled(capability, "every"))


def test_an_interpreting_triton_cannot_compile() -> None:
    if torch.cuda.is_available():
        pytest.skip("Triton interprets only without a GPU")
    form = compiling.forms()[0]
    with pytest.raises(ConfigError, match="unset TRITON_INTERPRET before Python starts"):
        compiling.compile_form(form, 90)
