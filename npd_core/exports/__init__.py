"""What leaves the app: a run as a zip file, its repaired network, a report, a link as a QR code."""

MODEL_FORMATS = {
    "safetensors": "weights in float32, to be read with the package safetensors",
    "pt2": "weights and graph, to be read with torch.export.load of PyTorch",
    "onnx": "weights and graph, for ONNX Runtime and other tools that read ONNX",
}
"""Formats of a repaired network, by the ending of its file, with what the file holds."""
