"""From a program to an ONNX model that the installed runtime accepts."""
