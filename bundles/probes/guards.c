/* Memory in which guard pages are made all the time, so that some are made just
 * before a freeze; and much memory that was never touched.
 *
 * guards         starts to make guard pages, then "ready"
 * SIGUSR1        looks at a part of the pages, those of the newest guards first;
 *                "turn K" when each is what it was. The second one stops making
 *                guards and looks at all.
 * What is wrong  "wrong WHAT", exit code 1
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { P = 4096, PAGES = 1 << 18, GUARD_INSTALL = 102 };

static unsigned char *area;
static atomic_long made; /* odd pages below 2 * made are guard pages */
static atomic_int stop;
static int pipes[2];
static sigjmp_buf back;

static void wrong(const char *what, long page) {
	printf("wrong %s %ld\n", what, page);
	exit(1);
}

static void fault(int sig) {
	siglongjmp(back, sig);
}

static void *make(void *unused) {
	struct timespec moment = {0, 20000};

	for (long i = 0; i < PAGES / 2 && !stop; i++) {
		if (madvise(area + (2 * i + 1) * P, P, GUARD_INSTALL))
			wrong("madvise", i);
		made = i + 1;
		nanosleep(&moment, NULL);
	}
	return unused;
}

/* A guard page, for the kernel and for the program. */
static void guard(long page) {
	int sig;

	if (page % 4 == 1) {
		if (write(pipes[1], area + page * P, 1) != -1 || errno != EFAULT)
			wrong("guard page, to write(2):", page);
		return;
	}
	sig = sigsetjmp(back, 1);
	if (!sig) {
		(void)*(volatile unsigned char *)(area + page * P);
		wrong("guard page, read:", page);
	}
	if (sig != SIGSEGV)
		wrong("guard page, by its signal:", page);
}

static void plain(long page) {
	volatile unsigned char *p = area + page * P;

	if (page % 64 == 0 ? p[0] != (unsigned char)(page / 64 + 1) : p[0] || p[P - 1])
		wrong("content of page", page);
}

int main(void) {
	pthread_t maker;
	sigset_t usr1;
	struct sigaction action = {.sa_handler = fault};
	long old = 0;

	setvbuf(stdout, NULL, _IOLBF, 0);
	sigemptyset(&usr1);
	sigaddset(&usr1, SIGUSR1);
	sigprocmask(SIG_BLOCK, &usr1, NULL);
	sigaction(SIGSEGV, &action, NULL);
	sigaction(SIGBUS, &action, NULL);
	area = mmap(NULL, (size_t)PAGES * P, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (area == MAP_FAILED || pipe(pipes))
		wrong("mmap", 0);
	for (long page = 0; page < PAGES; page += 64)
		memset(area + page * P, (int)(page / 64 + 1), P);
	/* Far more than any machine has. */
	if (mmap(NULL, 1L << 40, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0) == MAP_FAILED)
		wrong("mmap", 1);
	pthread_create(&maker, NULL, make, NULL);
	puts("ready");
	for (int turn = 1;; turn++) {
		int sig;
		long now;

		sigwait(&usr1, &sig);
		now = made;
		if (turn == 2) {
			stop = 1;
			pthread_join(maker, NULL);
			now = made;
			old = 0;
			for (long page = 0; page < PAGES; page += 2)
				plain(page);
			for (long page = 2 * now + 1; page < PAGES; page += 2)
				plain(page);
		} else {
			plain(64 * 5);
			plain(PAGES - 64);
			plain(2);
			old = now > 2000 ? now - 2000 : 0;
		}
		for (long i = now - 1; i >= old; i--)
			guard(2 * i + 1);
		printf("turn %d\n", turn);
	}
}
