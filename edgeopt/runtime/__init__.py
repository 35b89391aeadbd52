"""Everything that runs models; the only package that imports onnxruntime.

ONNX Runtime's official builds send telemetry unless it is disabled before they are loaded; it is disabled here.
"""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
