"""Kitbash on three simulated hosts of this machine, started with the real `ray up`. Needs root; `make test-hosts`."""
