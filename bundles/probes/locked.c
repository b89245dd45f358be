/* A program that locks its memory, as databases and those with deadlines do.
 *
 * locked [MiB]   fills MiB (default 16) of private and a quarter of that of shared
 *                anonymous memory, locks all that it has (mlockall), then makes memory
 *                that is locked as it is touched, of a terabyte; "ready"
 * SIGUSR1        looks at a part of the pages; "turn K" when each is what it was.
 *                The second one looks at all, and how they are locked.
 * What is wrong  "wrong WHAT", exit code 1
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { P = 4096, TOUCHED = 77 };

static uint64_t *own, *shared;
static unsigned char *touched;
static size_t pages, quarter;

static void wrong(const char *what, size_t page) {
	printf("wrong %s %zu\n", what, page);
	exit(1);
}

static void *map(size_t len, int prot, int flags) {
	void *at = mmap(NULL, len, prot, flags | MAP_ANONYMOUS, -1, 0);

	if (at == MAP_FAILED)
		wrong("mmap", len);
	return at;
}

static void fill(uint64_t *at, size_t n) {
	for (size_t i = 0; i < n; i++)
		at[i * P / 8 + i % 512] = i + 1;
}

static void check(const uint64_t *at, size_t n, size_t step, const char *what) {
	for (size_t i = 0; i < n; i += step)
		if (at[i * P / 8 + i % 512] != i + 1 || at[i * P / 8 + (i + 1) % 512])
			wrong(what, i);
}

/* The words of smaps for the area that starts at `at`. */
static void locks(const void *at, int whole, const char *what) {
	char line[1024], start[32];
	int here = 0;
	FILE *smaps = fopen("/proc/self/smaps", "r");

	snprintf(start, sizeof start, "%lx-", (unsigned long)at);
	while (smaps && fgets(line, sizeof line, smaps)) {
		if (!strncmp(line, start, strlen(start)))
			here = 1;
		if (!here || strncmp(line, "VmFlags:", 8))
			continue;
		if (!strstr(line, " lo") || !strstr(line, " lf") != whole)
			wrong(what, 0);
		fclose(smaps);
		return;
	}
	wrong("no such area:", 0);
}

int main(int argc, char **argv) {
	sigset_t usr1;
	void *hidden;

	setvbuf(stdout, NULL, _IOLBF, 0);
	sigemptyset(&usr1);
	sigaddset(&usr1, SIGUSR1);
	sigprocmask(SIG_BLOCK, &usr1, NULL);
	pages = (argc > 1 ? atol(argv[1]) : 16) << 8;
	quarter = pages / 4;
	own = map(pages * P, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	shared = map(quarter * P, PROT_READ | PROT_WRITE, MAP_SHARED);
	hidden = map(16 * P, PROT_NONE, MAP_PRIVATE);
	fill(own, pages);
	fill(shared, quarter);
	if (mlockall(MCL_CURRENT))
		wrong("mlockall", 0);
	touched = map(1UL << 40, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE);
	if (mlock2(touched, 1UL << 40, MLOCK_ONFAULT))
		wrong("mlock2", 0);
	touched[(size_t)TOUCHED * P] = 7;
	puts("ready");
	for (int turn = 1;; turn++) {
		int sig;

		sigwait(&usr1, &sig);
		check(own, pages, turn == 1 ? pages / 3 : 1, "private page");
		check(shared, quarter, turn == 1 ? quarter / 3 : 1, "shared page");
		if (touched[(size_t)TOUCHED * P] != 7 || touched[(size_t)(TOUCHED + turn) * P])
			wrong("page that was touched", turn);
		if (turn == 2) {
			locks(own, 1, "lock of private memory");
			locks(shared, 1, "lock of shared memory");
			locks(hidden, 1, "lock of memory that nobody may read");
			locks(touched, 0, "lock of memory as it is touched");
		}
		printf("turn %d\n", turn);
	}
}
