"""Exit codes. Those of errors stand with their classes in kitbash_ray/errors.py."""

OK = 0
#: Something went wrong that has no code of its own; also: a question failed in every layer.
FAILED = 1
#: Ctrl-C, as shells count it.
INTERRUPTED = 130
