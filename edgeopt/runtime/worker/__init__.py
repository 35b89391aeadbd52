"""The programs that run in another process or on another machine: each needs only what it names, nothing of edgeopt."""
