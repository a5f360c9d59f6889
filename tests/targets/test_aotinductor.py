"""The compiled package; compiling takes a C++ compiler and its time."""

from pathlib import Path

import pytest
import torch

from tests.targets.serving import small
from vitslim.errors import MissingDependencyError
from vitslim.targets import aotinductor
from vitslim.targets.aotinductor import compile_package, require_compiler


def test_a_missing_compiler_is_said_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aotinductor.shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(MissingDependencyError, match=r"needs a C\+\+ compiler .*apt-get install g\+\+"):
        compile_package(small(), tmp_path / "model.pt2", torch.zeros(3, 3, 32, 32))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.compiled
@pytest.mark.parametrize("method", [None, "sparsifiner"])
def test_a_package_computes_what_its_model_computes(method: str | None, tmp_path: Path) -> None:
    try:
        require_compiler()
    except MissingDependencyError as error:
        pytest.skip(str(error))
    model = small(method, **({"granularity": "query"} if method else {}))
    images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    written = compile_package(model, tmp_path / "model.pt2", images)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]
    assert (written.spelled_out > 0) is (method is not None)
    package = torch._inductor.aoti_load_package(str(tmp_path / "model.pt2"))
    with torch.no_grad():
        # Inductor's vectors sum in another order than eager torch.
        torch.testing.assert_close(package(images), model(images), rtol=1e-4, atol=1e-5)
    assert package.get_metadata()["bound_to"]
