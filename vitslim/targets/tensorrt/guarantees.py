"""What is guaranteed of an engine, compared with what was built."""

from vitslim.errors import CheckFailedError
from vitslim.runtime import EngineRecord, Precision
from vitslim.targets.tensorrt.layers import INSPECTOR_TYPES, LEAST_SHARE, EngineLayer, weight_elements
from vitslim.targets.tensorrt.options import EngineOptions

_NETWORK_TYPES: dict[Precision, str] = {"fp32": "FLOAT", "fp16": "HALF", "bf16": "BF16"}


def require_guarantees(record: EngineRecord, layers: list[EngineLayer], options: EngineOptions) -> None:
    """Fail where the engine is not in its precision, or not fused as asked.

    Args:
        record: of the engine.
        layers: of the engine, as far as TensorRT tells them.
        options: what was asked for.

    Raises:
        CheckFailedError: with what was asked for and what was found.
    """
    _require_precision(record.precision, record.matrix_types, weight_elements(layers))
    if options.plugins in ("on", "external") and not record.plugins.used:
        raise CheckFailedError(
            f"--plugins {options.plugins}: TensorRT took the function in the file instead of the plugin"
        )
    if not options.require_fused_mha:
        return
    if record.fused_mha is None:
        raise CheckFailedError(f"--require-fused-mha: it is not known; {record.unknown['fused_mha']}")
    if record.fused_mha.found < record.fused_mha.expected:
        why = "TensorRT fuses attention in fp16 and bf16 only" if record.precision == "fp32" else "see the log"
        raise CheckFailedError(
            f"--require-fused-mha: {record.fused_mha} attentions became one kernel ({why}); nothing was written"
        )


def _require_precision(precision: Precision, matrices: dict[str, int], weights: dict[str, int]) -> None:
    wanted = matrices.get(_NETWORK_TYPES[precision], 0)
    if wanted * 2 <= sum(matrices.values()):
        raise CheckFailedError(
            f"the network is not in {precision}: of its products with weights {wanted} of {sum(matrices.values())} "
            f"are ({matrices}); export the ONNX file in {precision}; nothing was written"
        )
    # Absent where the layers are not reported with their weights; the network's types then stand alone.
    total = sum(weights.values())
    stored = weights.get(INSPECTOR_TYPES[precision], 0)
    if total and stored < LEAST_SHARE * total:
        raise CheckFailedError(
            f"the engine is not in {precision}: {100 * stored / total:.0f} % of its weights are ({weights}), wanted "
            f"{100 * LEAST_SHARE:.0f} %; nothing was written"
        )
