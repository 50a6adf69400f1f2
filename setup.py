"""Builds the native core: every `_*.pyx` under shm/ and workers/ becomes one extension module.

pyproject.toml holds everything else. `TICKENGINE_EXT=shm._ring` builds only the named extensions (a comma list), and
`TICKENGINE_STOPS=1` compiles in the stops between the steps of publish that the kill tests use.
"""

import os
import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

ROOT = Path(__file__).parent

compile_args = ["-std=c11", "-O3", "-g1", "-Wall", "-Wno-unused-function"]
if sys.platform == "darwin":
    compile_args.append("-mmacosx-version-min=14.4")  # os_sync_wait_on_address
macros = [("TK_TEST_STOPS", "1")] if os.environ.get("TICKENGINE_STOPS") == "1" else []

sources = sorted([*ROOT.glob("shm/_*.pyx"), *ROOT.glob("workers/**/_*.pyx")])
headers = [str(path.relative_to(ROOT)) for pattern in ("shm/**/*.h", "workers/**/*.h") for path in ROOT.glob(pattern)]
extensions = [
    Extension(
        ".".join(path.relative_to(ROOT).with_suffix("").parts),
        [str(path.relative_to(ROOT))],
        include_dirs=["."],
        depends=headers,
        extra_compile_args=compile_args,
        define_macros=macros,
    )
    for path in sources
]
only = {name for name in os.environ.get("TICKENGINE_EXT", "").split(",") if name}
if only:
    extensions = [extension for extension in extensions if extension.name in only]

cores = os.cpu_count() or 1
setup(
    ext_modules=cythonize(
        extensions,
        language_level=3,
        nthreads=cores if len(extensions) > 1 else 0,
        compiler_directives={"embedsignature": True, "binding": True},
    ),
    options={"build_ext": {"parallel": cores}},
)
