"""The forms in which one exported file can be run."""

import math
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from vitslim.errors import CheckpointError, VitslimError
from vitslim.runtime import OrtRunner, Precision
from vitslim.targets.onnx.graph import choices_told, inlined
from vitslim.targets.onnx.reading import read_header
from vitslim.targets.onnx.rounding import rounding_copy
from vitslim.targets.onnx.types import value_types
from vitslim.targets.onnx.weights import data_path
from vitslim.targets.parity.bisect import Inside, inside_of
from vitslim.targets.parity.comparing import AS_WRITTEN, ROUNDED, ChoicesOf, Form

INLINED = "inlined"
_INT8, _FLOATS = 3, (1, 10)  # of onnx.TensorProto


def forms_of(path: Path) -> Iterator[Form]:
    """Every form of a file that can be run here.

    A file in bfloat16 has one, ``rounded``, since ONNX Runtime computes none on a CPU. Others are run ``as written``,
    and ``inlined`` where they hold local functions; those in float16 ``rounded`` too, since a CPU computes them finer
    than a GPU does. See ``vitslim.targets.onnx.rounding``.

    Raises:
        CheckpointError: the file is missing, or is no ONNX file.
        MissingDependencyError: onnx is not installed.
    """
    header = read_header(path)
    precision = precision_in(header)
    if precision != "bf16":
        yield AS_WRITTEN, OrtRunner(path), _telling(path)
        if header.functions:
            yield INLINED, _rewritten(path, inlined), _telling(path, inlined)
    if precision in ("fp16", "bf16"):
        yield ROUNDED, _rewritten(path, rounding_copy), _telling(path, rounding_copy)


@contextmanager
def _telling(path: Path, rewrite: Callable[[Any], Any] | None = None) -> Generator[ChoicesOf]:
    """A form whose outputs are also all indices that depend on scores."""

    def telling(model: Any) -> Any:
        return choices_told(model if rewrite is None else rewrite(model))

    with _rewritten(path, telling, whole=rewrite is rounding_copy) as runner:

        def run(images: Tensor) -> tuple[Tensor, list[Tensor]]:
            logits, *choices = runner.run_all(images)
            return logits.float(), choices

        yield run


@contextmanager
def showing_inside(path: Path) -> Generator[tuple[OrtRunner, Callable[[Tensor], Inside]]]:
    """A file whose outputs are also its choices, and whatever comes out of the nodes that are named after a module."""
    import onnx

    modules: list[str] = []
    rounds = precision_in(read_header(path)) == "bf16"

    def showing(model: Any) -> Any:
        model = choices_told(rounding_copy(model) if rounds else model)
        there = {output.name for output in model.graph.output}
        types = value_types(model)
        for node in model.graph.node:
            module, name = node.name.rpartition("/")[0], node.output[0]
            if module and name not in there and types.get(name) in _FLOATS:
                there.add(name)
                modules.append(module)
                model.graph.output.append(onnx.helper.make_tensor_value_info(name, types[name], None))
        return model

    with _rewritten(path, showing, whole=rounds) as runner:
        yield runner, lambda images: inside_of(runner.run_all(images), modules)


def precision_in(header: Any) -> Precision:
    """The precision that a graph computes in, as its weights tell it, whatever its metadata say.

    INT8 where any matrix is, whatever stayed in float; else that of most weights.
    """
    sizes = Counter[int]()
    for tensor in header.graph.initializer:
        sizes[tensor.data_type] += math.prod(tensor.dims)
        if tensor.data_type == _INT8 and len(tensor.dims) == 2:
            return "int8"
    kinds: dict[Precision, int] = {"fp32": 1, "fp16": 10, "bf16": 16}  # of onnx.TensorProto
    return max(kinds, key=lambda precision: sizes[kinds[precision]])


@contextmanager
def _rewritten(path: Path, rewrite: Callable[[Any], Any], *, whole: bool = False) -> Generator[OrtRunner]:
    import onnx

    is_split = data_path(path).is_file()
    # Weights are found beside the file, and only there.
    near = path.parent if is_split and os.access(path.parent, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="vitslim-", dir=near) as folder:
        scratch = Path(folder) / path.name
        whole = whole or rewrite is rounding_copy
        try:
            model = rewrite(onnx.load(str(path), load_external_data=whole))
        except VitslimError:
            raise
        except Exception as error:  # of onnx, protobuf or numpy, by what is wrong with the graph
            raise CheckpointError(f"{path} is damaged ({type(error).__name__}: {error}); export it again") from error
        if is_split and not whole:
            _lend(data_path(path), Path(folder) / data_path(path).name)
        onnx.save(model, str(scratch), save_as_external_data=is_split and whole, location=f"{path.name}.data")
        with OrtRunner(scratch, name=path.stem) as runner:
            yield runner


def _lend(data: Path, place: Path) -> None:
    try:
        place.hardlink_to(data)
    except OSError:
        shutil.copyfile(data, place)
