"""Running an ONNX file in ONNX Runtime."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from vitslim.errors import CheckpointError, ConfigError
from vitslim.runtime.ort_session import Provider, open_session
from vitslim.runtime.runner import DTYPES, Images, Precision, Runner, TensorSpec, check_images

_BACKENDS: dict[Provider, str] = {"cpu": "ort", "cuda": "ort-cuda", "tensorrt": "ort-tensorrt"}
_DTYPES = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16, "tensor(uint8)": torch.uint8}
_OUTPUTS = {**_DTYPES, "tensor(int64)": torch.int64, "tensor(bool)": torch.bool}
_ELEMENTS = {torch.float32: "float32", torch.float16: "float16", torch.uint8: "uint8"}


class OrtRunner(Runner):
    """An ONNX file in an ONNX Runtime session.

    Args:
        path: a ``.onnx`` file with one image input.
        threads: for the operators of one inference; ``None`` for ONNX Runtime's choice, one per core.
        provider: ``"cuda"`` and ``"tensorrt"`` need onnxruntime-gpu, and then no operator may silently fall back as a
            whole session. ``"tensorrt"`` builds its engines when the first images of a shape arrive.
        name: how reports call it; the file's stem by default.

    Raises:
        MissingDependencyError: onnxruntime, or the asked-for provider, is not there.
        CheckpointError: the file is missing, or is not an ONNX file that this onnxruntime reads.
    """

    def __init__(
        self, path: str | Path, *, threads: int | None = None, provider: Provider = "cpu", name: str | None = None
    ) -> None:
        self._session: Any = open_session(Path(path), provider=provider, threads=threads)
        self.name = name or Path(path).stem
        self.backend = _BACKENDS[provider]
        self.device = torch.device("cpu" if provider == "cpu" else "cuda")
        try:
            self.metadata = cast("dict[str, str]", dict(self._session.get_modelmeta().custom_metadata_map))
            self.inputs = tuple(_spec(value) for value in self._session.get_inputs())
            self.outputs = tuple(_spec(value, _OUTPUTS) for value in self._session.get_outputs())
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{path} is damaged: a name in it is no text ({error}); export it again") from error
        if not self.inputs or not self.outputs:
            raise CheckpointError(f"{path} has no input or no output; export it again")
        self.precision = _precision(self.metadata, self.inputs[0])

    def run(self, images: Images) -> Float[Tensor, "b ..."]:
        """The file's first output for ``images``, float32, on the runner's device.

        Raises:
            ConfigError: the images are not what the file takes, see ``check_images``.
        """
        self.require_open()
        check_images(images, self.inputs[0])
        images = images.detach().to(device=self.device, dtype=self.inputs[0].dtype).contiguous()
        run = self._run_on_gpu if self.device.type == "cuda" else self._run_on_cpu
        return run(images).float()

    def run_all(self, images: Images) -> list[Tensor]:
        """All outputs of the file for ``images``, as they are, on the CPU.

        Raises:
            ConfigError: the images are not what the file takes, see ``check_images``.
        """
        self.require_open()
        check_images(images, self.inputs[0])
        given = images.detach().to(device="cpu", dtype=self.inputs[0].dtype).contiguous()
        return [torch.from_numpy(one) for one in self._outputs_on_cpu(None, given)]

    def close(self) -> None:
        super().close()
        self._session = None

    def _run_on_cpu(self, images: Tensor) -> Tensor:
        return torch.from_numpy(self._outputs_on_cpu([self.outputs[0].name], images)[0])

    def _outputs_on_cpu(self, names: list[str] | None, images: Tensor) -> list[Any]:
        try:
            return self._session.run(names, {self.inputs[0].name: images.numpy()})
        except Exception as error:  # onnxruntime raises a dozen unrelated classes here
            raise CheckpointError(f"onnxruntime cannot run {self.name}: {error}") from error

    def _run_on_gpu(self, images: Tensor) -> Tensor:
        # Bound to torch's memory on both sides, so that neither images nor logits cross the bus.
        shape = [images.shape[0], *(size or 1 for size in self.outputs[0].shape[1:])]
        result = torch.empty(shape, dtype=self.outputs[0].dtype, device=self.device)
        binding = self._session.io_binding()
        for bind, spec, tensor in (
            (binding.bind_input, self.inputs[0], images),
            (binding.bind_output, self.outputs[0], result),
        ):
            bind(
                spec.name,
                "cuda",
                tensor.device.index or 0,
                _ELEMENTS[tensor.dtype],
                list(tensor.shape),
                tensor.data_ptr(),
            )
        torch.cuda.current_stream().synchronize()  # the session runs on a stream of its own
        self._session.run_with_iobinding(binding)
        return result


def _spec(value: Any, types: Mapping[str, torch.dtype] = _DTYPES) -> TensorSpec:
    shape = tuple(size if isinstance(size, int) else None for size in value.shape)
    if value.type not in types:
        raise ConfigError(f"'{value.name}' is {value.type}; runners take float32, float16 and uint8")
    return TensorSpec(value.name, shape, types[value.type])


def _precision(metadata: dict[str, str], images: TensorSpec) -> Precision:
    # A file may keep float32 at its ends and compute in fp16, so what the exporter wrote comes first.
    declared = metadata.get("precision")
    for precision in get_args(Precision):
        if declared == precision or (declared is None and images.dtype == DTYPES.get(precision)):
            return precision
    return "fp32"
