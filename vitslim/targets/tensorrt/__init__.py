"""Engines for TensorRT and TensorRT-RTX, built from exported ONNX files."""
