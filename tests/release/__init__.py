"""Tests of edgeopt.release."""
