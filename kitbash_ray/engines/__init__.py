"""Programs that turn a prompt into text behind one protocol (base.py).

Here is llama.cpp in this process; engines over HTTP join it behind the same protocol.
"""
