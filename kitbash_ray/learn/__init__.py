"""Teaching the small model of layer 1 what the cartridges know; needs the extra `train`.

corpus (pairs of question and answer) -> tokenizer, student -> train -> export (GGUF), manifest.
"""
