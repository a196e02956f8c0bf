"""The layers as plain classes, one per file; actors/ puts them on devices.

0 `grain` crystallized facts · 1 `bitnet` a small model · 2 `cartridge` retrieval with
citations · 4 `kobold` a language model over layer 2's facts.
"""
