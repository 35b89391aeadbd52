"""Builds each variant step by step through a content-addressed cache, evaluates it and measures it."""
