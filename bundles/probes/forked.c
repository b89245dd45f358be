/* A family that shares its memory since fork(2), each with pages of its own.
 *
 * forked [MIB]   fills MIB (default 32), forks two children, the first of which
 *                forks one; all of them, the parent too, then change some pages,
 *                drop some, and write some that were untouched; then "ready"
 * SIGUSR1        each looks whether its memory is what it made of it: "right",
 *                or "wrong WHAT" and exit code 1
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096
static size_t pages;
static uint64_t *memory;  /* filled; its last eighth untouched */
static uint64_t *closed;  /* filled, then PROT_READ */
static int me, told[2];

static uint64_t *page(size_t n) { return memory + n * (PAGE / 8); }

/* What page n of process `who` must hold in its first word; the others follow. */
static uint64_t word(int who, size_t n) {
	size_t filled = pages - pages / 8;
	if (n % 61 == (size_t)who)
		return n < filled ? 0 : (n << 8 | 0x80) + who; /* dropped; or written first by it */
	if (n >= filled)
		return 0;
	if (n % 67 == (size_t)who)
		return (n << 8 | 0x40) + who;
	return n << 8 | 1;
}

static void fill(uint64_t *at, uint64_t with) {
	for (size_t i = 0; i < PAGE / 8; i++)
		at[i] = with ? with + (i << 40) : 0;
}

static void become(int who) {
	me = who;
	for (size_t n = 0; n < pages; n++) {
		uint64_t now = word(who, n);
		if (!now && n < pages - pages / 8)
			madvise(page(n), PAGE, MADV_DONTNEED);
		else if (now && now != (n << 8 | 1))
			fill(page(n), now);
	}
}

static const char *check(void) {
	for (size_t n = 0; n < pages; n++) {
		uint64_t want = word(me, n);
		for (size_t i = 0; i < PAGE / 8; i++)
			if (page(n)[i] != (want ? want + (i << 40) : 0))
				return "memory";
	}
	for (size_t i = 0; i < PAGE; i++)
		if (closed[i] != i)
			return "memory that is only read";
	return NULL;
}

static void wait_and_check(pid_t *children, int count) {
	sigset_t usr1;
	int status;
	sigemptyset(&usr1);
	sigaddset(&usr1, SIGUSR1);
	if (write(told[1], "x", 1) != 1)
		exit(2);
	if (me == 0) {
		char c;
		for (int i = 0; i < 4; i++)
			if (read(told[0], &c, 1) != 1)
				exit(2);
		printf("ready\n");
	}
	while (sigwaitinfo(&usr1, NULL) != SIGUSR1)
		;
	const char *bad = check();
	for (int i = 0; i < count; i++) {
		kill(children[i], SIGUSR1);
		if (waitpid(children[i], &status, 0) != children[i] || status)
			bad = bad ? bad : "a child";
	}
	if (bad)
		printf("wrong %s of process %d\n", bad, me);
	else if (me == 0)
		printf("right\n");
	exit(bad != NULL);
}

int main(int argc, char **argv) {
	sigset_t usr1;
	pid_t children[2], grandchild;
	setvbuf(stdout, NULL, _IOLBF, 0);
	sigemptyset(&usr1);
	sigaddset(&usr1, SIGUSR1);
	sigprocmask(SIG_BLOCK, &usr1, NULL);
	pages = (argc > 1 && atoi(argv[1]) > 0 ? (size_t)atoi(argv[1]) : 32) << 8;
	memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	closed = mmap(NULL, PAGE * 8, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED || closed == MAP_FAILED || pipe(told))
		return 2;
	for (size_t n = 0; n < pages - pages / 8; n++)
		fill(page(n), n << 8 | 1);
	for (size_t i = 0; i < PAGE; i++)
		closed[i] = i;
	mprotect(closed, PAGE * 8, PROT_READ);
	if (!(children[0] = fork())) {
		if (!(grandchild = fork())) {
			become(2);
			/* a place where its parent has something else */
			mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
			wait_and_check(NULL, 0);
		}
		become(1);
		wait_and_check(&grandchild, 1);
	}
	if (!(children[1] = fork())) {
		become(3);
		wait_and_check(NULL, 0);
	}
	become(0);
	wait_and_check(children, 2);
}
