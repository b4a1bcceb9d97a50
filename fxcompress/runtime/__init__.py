"""ONNX Runtime from ONNX bytes alone: sessions, timing, memory, inspection."""
