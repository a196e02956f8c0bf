"""Programs that turn a prompt into text behind one protocol (base.py).

Here are llama.cpp in this process, and two kinds of servers elsewhere: KoboldCpp and what speaks OpenAI's API.
"""
