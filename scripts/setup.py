"""Set the project up in .venv: tools, pinned dependencies, the project, the embedding model.

Needs nothing but Python itself. Says what it does, and while llama.cpp compiles (minutes, once
per machine: the result is cached) which file the compiler is at. Run it through `make`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
UV = "uv==0.13.8"
OLDEST, NEWEST = (3, 10), (3, 13)
#: Leaves out the parts of llama.cpp that are not used, which shortens the build.
CMAKE_ARGS = "-DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_SERVER=OFF -DMTMD_BUILD=OFF"
TELL_EVERY_S = 10


def main() -> None:
    check_machine()
    began = time.monotonic()
    python = VENV / "bin" / "python"
    if not python.exists():
        say("making .venv")
        run([sys.executable, "-m", "venv", str(VENV)])
    say("installing uv")
    run([str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", UV])
    say("installing the pinned dependencies; compiling llama.cpp takes some minutes the first time")
    uv = [str(VENV / "bin" / "uv"), "pip"]
    run([*uv, "sync", "-q", "--python", str(python), str(ROOT / "requirements.lock")], show_compiler=True)
    run([*uv, "install", "-q", "--python", str(python), "--no-deps", "-e", str(ROOT)])
    say("converting the embedding model and indexing the cartridges, a minute or two the first time")
    run([str(VENV / "bin" / "kitbash"), "cartridge", "build"])
    (VENV / "ready").touch()
    say(f"ready after {time.monotonic() - began:.0f} s")


def check_machine() -> None:
    version = sys.version_info[:2]
    if not OLDEST <= version <= NEWEST:
        stop(
            f"Python {OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]} is needed, this is {version[0]}.{version[1]}; set it with `make PYTHON=python3.11`."
        )
    if not (shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")):
        stop("A C and C++ compiler is needed to build llama.cpp: install one (apt install build-essential).")
    if version == (3, 13) and not shutil.which("redis-server"):
        stop("With Python 3.13 a redis-server must be on PATH: install one (apt install redis-server).")


def run(command: list[str], *, show_compiler: bool = False) -> None:
    environment = {**os.environ, "CMAKE_ARGS": f"{CMAKE_ARGS} {os.environ.get('CMAKE_ARGS', '')}".strip()}
    if "PIP_INDEX_URL" in environment:  # uv reads a variable of its own
        environment.setdefault("UV_DEFAULT_INDEX", environment["PIP_INDEX_URL"])
    began = told = time.monotonic()
    process = subprocess.Popen(command, env=environment, cwd=ROOT)
    try:
        while process.poll() is None:
            time.sleep(0.2)
            if show_compiler and time.monotonic() - told >= TELL_EVERY_S:
                told = time.monotonic()
                say(f"  {told - began:4.0f} s  {compiling() or 'downloading and unpacking'}")
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        stop("interrupted; run it again to go on")
    if process.returncode:
        stop(f"this failed: {' '.join(command[:6])} ... (see above)")


def compiling() -> str:
    """The source file that a compiler works on now, where the system can tell."""
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().split(b"\0")
        except OSError:
            continue
        if words and words[0].rsplit(b"/", 1)[-1] in (b"cc1plus", b"cc1", b"clang"):
            for word in words:
                if word.endswith((b".cpp", b".c", b".cc")):
                    return f"compiling {word.rsplit(b'/', 1)[-1].decode(errors='replace')}"
    return ""


def say(what: str) -> None:
    print(f"setup: {what}", flush=True)


def stop(why: str) -> None:
    sys.exit(f"setup: {why}")


if __name__ == "__main__":
    main()
