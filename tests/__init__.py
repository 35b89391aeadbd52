"""The tests. A machine that does other work too must not fail one: laws have no deadline."""

from hypothesis import settings

settings.register_profile("edgeopt", deadline=None)
settings.load_profile("edgeopt")
