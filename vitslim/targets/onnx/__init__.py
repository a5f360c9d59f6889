"""ONNX files: written, checked, run, quantized."""
