/* Fixed work for benchmarks: prints nanoseconds an operation (CPU time of both processes, which neighbours on the machine disturb
 * less than wall clock; of reads past the page cache the median by wall clock), or of a storm the number of round trips.
 *
 *   bench_ops getppid N | read N | pingpong N | direct N FILE | storm ROUND_TRIPS_PER_S SECONDS (0: as many as go)
 *
 * A round trip is two switches between two processes on CPU 0.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#define BLOCK 4096

static int there[2], back[2];

static uint64_t now_ns(void)
{
	struct timespec at;

	clock_gettime(CLOCK_MONOTONIC, &at);
	return (uint64_t)at.tv_sec * 1000000000u + at.tv_nsec;
}

/* Of this process and of children that were waited for. */
static uint64_t cpu_ns(void)
{
	struct rusage own, children;

	getrusage(RUSAGE_SELF, &own);
	getrusage(RUSAGE_CHILDREN, &children);
	uint64_t s = own.ru_utime.tv_sec + own.ru_stime.tv_sec + children.ru_utime.tv_sec + children.ru_stime.tv_sec;
	uint64_t us = own.ru_utime.tv_usec + own.ru_stime.tv_usec + children.ru_utime.tv_usec + children.ru_stime.tv_usec;
	return s * 1000000000u + us * 1000u;
}

static int by_size(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

static void need(int good, const char *what)
{
	if (!good) {
		perror(what);
		exit(1);
	}
}

static void start_partner(void)
{
	char byte;
	cpu_set_t first;

	CPU_ZERO(&first);
	CPU_SET(0, &first);
	need(!sched_setaffinity(0, sizeof(first), &first) && !pipe(there) && !pipe(back), "pipe");
	pid_t pid = fork();
	need(pid >= 0, "fork");
	if (pid)
		return;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	close(there[1]);
	while (read(there[0], &byte, 1) == 1)
		need(write(back[1], &byte, 1) == 1, "write");
	_exit(0);
}

static void end_partner(void)
{
	if (!there[1])
		return;
	close(there[1]);
	wait(NULL);
}

static void round_trip(void)
{
	char byte = 0;

	need(write(there[1], &byte, 1) == 1 && read(back[0], &byte, 1) == 1, "round trip");
}

static uint64_t storm(uint64_t per_second, double seconds)
{
	uint64_t begun = now_ns(), end = begun + (uint64_t)(seconds * 1e9), done = 0, now;

	while ((now = now_ns()) < end) {
		if (per_second && done >= per_second * ((now - begun) / 1000000 + 1) / 1000) {
			struct timespec pause = {.tv_nsec = 200000};
			nanosleep(&pause, NULL);
			continue;
		}
		round_trip();
		done++;
	}
	return done;
}

int main(int argc, char **argv)
{
	need(argc > 2, "usage");
	uint64_t n = strtoull(argv[2], NULL, 10);
	const char *work = argv[1];
	char byte;

	if (!strcmp(work, "storm")) {
		need(argc > 3, "usage");
		start_partner();
		printf("%llu\n", (unsigned long long)storm(n, atof(argv[3])));
		end_partner();
	} else {
		void *block = NULL;
		int zero = open("/dev/zero", O_RDONLY), file = -1;
		off_t blocks = 1;
		uint64_t *took = NULL, state = 88172645463325252u;

		if (!strcmp(work, "pingpong"))
			start_partner();
		if (!strcmp(work, "direct")) {
			struct stat about;

			need(argc > 3 && (file = open(argv[3], O_RDONLY | O_DIRECT)) >= 0 && !fstat(file, &about), "direct");
			need(!posix_memalign(&block, BLOCK, BLOCK) && (took = calloc(n, sizeof(*took))), "memory");
			blocks = about.st_size / BLOCK;
		}
		uint64_t begun_cpu = cpu_ns();
		for (uint64_t i = 0; i < n; i++) {
			if (work[0] == 'g')
				syscall(SYS_getppid);
			else if (work[0] == 'r')
				need(read(zero, &byte, 1) == 1, "read");
			else if (work[0] == 'p')
				round_trip();
			else {
				state ^= state << 13, state ^= state >> 7, state ^= state << 17; /* xorshift64, Marsaglia 2003 */
				took[i] = now_ns();
				need(pread(file, block, BLOCK, (off_t)(state % blocks) * BLOCK) == BLOCK, "pread");
				took[i] = now_ns() - took[i];
			}
		}
		end_partner();
		if (took) {
			qsort(took, n, sizeof(*took), by_size);
			printf("%llu\n", (unsigned long long)took[n / 2]);
		} else {
			printf("%.2f\n", (double)(cpu_ns() - begun_cpu) / n);
		}
	}
	return 0;
}
