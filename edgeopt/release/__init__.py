"""The release pipeline: project file, variants, gates, evidence. Neither onnxruntime nor torch is imported here."""
