"""What pyproject.toml cannot say: the inner loop of small networks in C, left out where there is no compiler."""

import platform
import zlib
from pathlib import Path

from setuptools import Extension, setup

SOURCES = sorted(Path("gtl_core/_engine").glob("*.[ch]"))
# One library for each kind of vectors that torch tells apart; which one is loaded, the machine decides that runs it.
LEVELS = {"avx2": ["-mavx2", "-mfma"], "avx512": ["-mavx512f", "-mavx2", "-mfma"]}
if platform.machine() not in ("x86_64", "AMD64"):
    LEVELS = {"default": []}

# Python itself asks for integers that wrap, at half the speed; nobody reads the errors of square roots. Without -g0,
# the library would name the folder that it was built in, and no two builds would be the same.
OPTIONS = ["-fno-wrapv", "-fno-math-errno", "-fno-trapping-math", "-g0"]

setup(
    ext_modules=[
        Extension(
            f"gtl_core._engine._blocks_{level}",
            [str(path) for path in SOURCES if path.suffix == ".c"],
            depends=[str(path) for path in SOURCES],
            extra_compile_args=["-O3", *OPTIONS, *flags],
            define_macros=[("SOURCE", f"{zlib.crc32(b''.join(path.read_bytes() for path in SOURCES))}u")],
            optional=True,
        )
        for level, flags in LEVELS.items()
    ]
)
