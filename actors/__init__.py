"""One Ray actor per file: a plain class, made an actor by the last line.

    grain_router   builds layer 0's index and publishes it; every front-door replica maps it
    bitnet         layer 1
    cartridge      layer 2
    kobold         layer 4
    orchestrator   runs the cascade inside a front-door replica; no actor of its own

`deploy` starts, finds and watches the named actors. `remote` makes an actor look like a layer.
`heartbeat` is how an actor says on the blackboard that it lives, `metrics` what a replica counts.
"""
