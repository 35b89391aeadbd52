"""Variants made step by step, kept by their content, evaluated and measured."""
