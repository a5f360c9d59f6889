from vitslim.targets.tensorrt.build_log import is_out_of_memory, useful_line
from vitslim.targets.tensorrt.layers import (
    count_types,
    fused_attentions,
    layers_from_inspector,
    layers_from_log,
    weight_elements,
)

# As TensorRT-RTX 1.7 lists them at the end of a verbose log.
LOG = """\
[VERBOSE] Layers:
Name: __mye17_0_myl0_0, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0
Name: node_MatMul_12_myl0_4, LayerType: gemm, Inputs: [ { Name: a, Dimensions: [-1,384], Strides: [384,1], \
StrideOrder: [1,0], Datatype: Half, Format: (Linear) Row major linear format }], Constants: [ { Name: w, \
Dimensions: [384,1152], Strides: [1152,1], StrideOrder: [1,0], Datatype: Half, Format: (Linear) Row major linear \
format }, { Name: alpha, Dimensions: [1], Strides: [1], StrideOrder: [0], Datatype: Float, Format: (Linear) Row major \
linear format }], Outputs: [ { Name: o, Dimensions: [-1,1152], Strides: [1152,1], StrideOrder: [1,0], Datatype: Half, \
Format: (Linear) Row major linear format }], TacticName: __myelin_CASK_STUB, StreamId: 0, Metadata: [ONNX Layer: m]
Name: _gemm_mha_v2_myl0_6, LayerType: kgen, Inputs: [], Constants: [], Outputs: [ { Name: o, Dimensions: [-1,197,64], \
Strides: [64,-1,1], StrideOrder: [1,2,0], Datatype: Half, Format: (Arbitrary) Format with stride order = [1,2,0] }], \
TacticName: _gemm_mha_v2_0x3c92, StreamId: 0, Metadata: [ONNX Layer: node_Softmax_62][ONNX Layer: node_MatMul_61]
[INFO] done
"""


def test_the_builders_log_tells_types_weights_and_fused_attention_without_a_gpu():
    layers = layers_from_log(LOG.splitlines())
    assert [layer.name for layer in layers] == ["__mye17_0_myl0_0", "node_MatMul_12_myl0_4", "_gemm_mha_v2_myl0_6"]
    assert count_types(layers) == {"gemm": {"Half": 1}, "kgen": {"Half": 1}, "shape_call": {"none": 1}}
    assert fused_attentions(layers) == 1
    # The scalar alpha is no matrix.
    assert weight_elements(layers) == {"Half": 384 * 1152}


def test_the_inspectors_json_is_read_in_both_its_spellings_and_as_bare_names():
    entries = [
        {
            "Name": "fc",
            "LayerType": "gemm",
            "TacticName": "sm80_xmma",
            "Outputs": [{"Name": "o", "Dimensions": [8, 10], "Format/Datatype": "Row major linear FP16 format"}],
        },
        {
            "Name": "conv",
            "LayerType": "CaskConvolution",
            "Outputs": [{"Name": "o", "Dimensions": [8, 10], "Datatype": "BFloat16"}],
            "Weights": {"Type": "Half", "Count": 768},
        },
        "__mye_fmha_v2_3",
    ]
    layers = layers_from_inspector(entries)
    assert [layer.dtype for layer in layers] == ["Half", "Half", "none"]
    assert fused_attentions(layers) == 1
    assert weight_elements(layers) == {"Half": 768}


def test_the_useful_line_is_the_first_error_that_is_not_about_the_missing_gpu():
    log = [
        "[INFO] parsing",
        "[ERROR] Error Code 1: Cuda Runtime (CUDA driver version is insufficient for CUDA runtime version)",
        "[ERROR] Error Code 4: shapes do not agree",
        "[ERROR] Network must have at least one output",
    ]
    assert useful_line(log) == "Error Code 4: shapes do not agree"
    assert useful_line(log[:2]).startswith("Error Code 1")
    assert useful_line(["[VERBOSE] a", "terminate called after throwing", "[INFO] b"]) == (
        "terminate called after throwing"
    )
    assert useful_line([]) == "the log says nothing"
    assert is_out_of_memory(["terminate called after throwing an instance of 'std::bad_alloc'"])
    assert not is_out_of_memory(log)
