"""All that runs a model: the only importer of onnxruntime.

ONNX Runtime's official builds send telemetry unless told otherwise before they load, so this is the place that says so.
"""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
