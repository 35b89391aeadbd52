"""The artefacts of a run: files, HTML page, charts, manifest."""
