"""What Kitbash knows: cartridges on disk, the index over them, and how both are searched.

`text` words, numbers and negations of a text · `minilm` `bert_graph` `encoder` `embedder` text to vectors ·
`cartridge` the format on disk · `checks` what `cartridge check` refuses · `importers`
other people's files · `library` all cartridges of a folder · `grain_index` layer 0's
arrays · `retrieval` layer 2's table · `evidence` how well a text answers a question.
"""
