"""The tests. A machine that does other work too must not fail one (laws have no deadline), nor a runner such as nohup
that starts them with Ctrl-C ignored; the same cases are drawn every time.
"""

import signal

from hypothesis import settings

signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("edgeopt", deadline=None, derandomize=True)
settings.load_profile("edgeopt")
