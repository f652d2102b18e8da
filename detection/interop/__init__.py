"""Detectors to other frameworks: ONNX, and torchvision's own constructors. Backbones alone: `backbone.interop`."""
