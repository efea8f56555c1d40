"""Go through files again and again: a program that the memory_limit fault runs inside the cgroup it presses.

``python -m libslo.lab.faults.pressure MEGABYTES``. It reads holes of a file without a name: their pages come into the page cache and
are charged to the reader's cgroup, but no disk is asked and nothing is left behind. Such pages can always be given back, so the
cgroup is kept at its limit without the OOM killer; should it come all the same, it takes this process first.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

_CHUNK_BYTES = 1 << 20
_PAUSE_S = 0.002  # a chunk: at most 500 MB/s, so that the pressed cgroup keeps some CPU
_DIRECTORY = "/var/tmp"  # noqa: S108 (a file without a name; /tmp may be in memory, where holes have no pages)


def main() -> None:
    """Read until killed; says "reading" when it begins."""
    size_bytes = int(float(sys.argv[1]) * 1e6)
    Path("/proc/self/oom_score_adj").write_text("1000")
    with tempfile.TemporaryFile(dir=_DIRECTORY, buffering=0) as file:
        file.truncate(size_bytes)
        buffer = bytearray(_CHUNK_BYTES)
        print("reading", flush=True)
        sys.stdin.readline()  # until the limit is set
        while True:
            for offset in range(0, size_bytes, _CHUNK_BYTES):
                os.preadv(file.fileno(), [buffer], offset)
                time.sleep(_PAUSE_S)


if __name__ == "__main__":
    main()
