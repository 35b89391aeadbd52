"""What a run leaves: files, page, charts, manifest."""
