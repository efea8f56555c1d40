"""What a probe costs whoever runs into it: nanoseconds a hit, loops with and without it in turn.

Usage: probe_cost.py [PAIRS]
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from libslo.kernel.session import Session
from libslo.kernel.settings import CaptureSettings

CALLS, SWITCHES = 300_000, 30_000
SYSCALL, RUNQUEUE = "syscall_latency_ms", "runqueue_delay_ms"
# getppid is no call that is measured; a read of /dev/zero is one. `pingpong` passes a byte to and fro on one CPU: two switches a round.
SOURCE = """
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static int there[2], back[2];

static void *answer(void *unused)
{
	char byte;

	while (read(there[0], &byte, 1) == 1)
		write(back[1], &byte, 1);
	return unused;
}

/* CPU time of all threads: that of neighbours does not count. */
static double run(const char *what, long n, int zero)
{
	struct timespec begun, ended;
	char byte = 0;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &begun);
	for (long i = 0; i < n; i++) {
		if (!strcmp(what, "getppid"))
			syscall(SYS_getppid);
		else if (!strcmp(what, "read"))
			read(zero, &byte, 1);
		else if (write(there[1], &byte, 1) != 1 || read(back[0], &byte, 1) != 1)
			exit(1);
	}
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ended);
	return ((ended.tv_sec - begun.tv_sec) * 1e9 + (ended.tv_nsec - begun.tv_nsec)) / n;
}

int main(int argc, char **argv)
{
	int zero = open("/dev/zero", O_RDONLY);
	pthread_t thread;
	char line[64];
	cpu_set_t cpus;

	CPU_ZERO(&cpus);
	CPU_SET(atoi(argv[2]), &cpus);
	sched_setaffinity(0, sizeof(cpus), &cpus);
	if (pipe(there) || pipe(back))
		return 1;
	if (!strcmp(argv[1], "pingpong"))
		pthread_create(&thread, NULL, answer, NULL);
	while (fgets(line, sizeof(line), stdin)) {
		printf("%.1f\\n", run(argv[1], atol(line), zero));
		fflush(stdout);
	}
	return 0;
}
"""


@contextmanager
def loop(program: Path, what: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([program, what, str(max(os.sched_getaffinity(0)))], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.communicate()


def ns_each(process: subprocess.Popen[str], count: int) -> float:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(f"{count}\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def compare(process: subprocess.Popen[str], count: int, pairs: int, settings: CaptureSettings) -> tuple[float, float, float]:
    """Median without, median of the pairs' differences, and half the width of its middle half; all in ns a round."""
    without, more = [], []
    ns_each(process, count)
    for _ in range(pairs):
        base = ns_each(process, count)
        with Session(settings) as session:
            assert session.states[0].attached, session.states[0].reason
            time.sleep(0.02)
            more.append(ns_each(process, count) - base)
        without.append(base)
    low, middle, high = statistics.quantiles(more, n=4)
    return statistics.median(without), middle, (high - low) / 2


def main() -> None:
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 12
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory, "loop")
        source = program.with_suffix(".c")
        source.write_text(SOURCE)
        subprocess.run(["clang", "-O2", "-pthread", "-Wno-unused-result", "-o", program, source], check=True)
        print(f"{'signal':20} {'variant':13} {'hit':44} {'base':>7} {'more':>7} {'+-':>6}  n = {pairs} pairs")
        for variant in ("raw_tp", "tp_btf", "tp_btf_plain"):
            for what, mine, histograms, hit in (
                ("getppid", True, True, "a call that is not measured"),
                ("read", False, True, "a measured call of another process"),
                ("read", True, False, "a measured call, below the threshold"),
                ("read", True, True, "the same, with its histogram"),
            ):
                with loop(program, what) as process:
                    settings = CaptureSettings(
                        signals=(SYSCALL,), variants={SYSCALL: variant}, min_latency_ms=1000, histograms=histograms,
                        pids=(process.pid if mine else 1,),
                    )  # fmt: skip
                    base, more, spread = compare(process, CALLS, pairs, settings)
                print(f"{SYSCALL:20} {variant:13} {hit:44} {base:7.0f} {more:7.0f} {spread:6.0f}", flush=True)
        for variant in ("sched_switch", "tracepoint"):
            for mine, histograms, hit in (
                (False, True, "two switches, of other processes"),
                (True, False, "two switches, below the threshold"),
                (True, True, "the same, with its histogram"),
            ):
                with loop(program, "pingpong") as process:
                    settings = CaptureSettings(
                        signals=(RUNQUEUE,), variants={RUNQUEUE: variant}, min_latency_ms=1000, histograms=histograms,
                        pids=() if mine else (1,),
                    )  # fmt: skip
                    base, more, spread = compare(process, SWITCHES, pairs, settings)
                print(f"{RUNQUEUE:20} {variant:13} {hit:44} {base:7.0f} {more:7.0f} {spread:6.0f}", flush=True)


if __name__ == "__main__":
    main()
