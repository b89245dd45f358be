/* Threads, each with a name, a thread-local value and a mask of its own.
 *
 * threads [N]    starts N threads (default 8), then "ready N"
 * SIGUSR1        every thread compares its local value, name and mask with what
 *                it was given; "turn K N" when all N have answered
 * What is wrong  "wrong WHAT", exit code 1
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

static __thread long mine;
static pthread_barrier_t begin, end;

static void wrong(const char *what, long who) {
	printf("wrong %s of thread %ld\n", what, who);
	exit(1);
}

static void *work(void *argument) {
	long who = (long)argument;
	char name[16], seen[16];
	sigset_t mask, now;

	mine = who * 1000003;
	snprintf(name, sizeof name, "worker-%ld", who);
	prctl(PR_SET_NAME, name);
	sigemptyset(&mask);
	sigaddset(&mask, SIGUSR1);
	sigaddset(&mask, SIGRTMIN + (int)(who % 16));
	pthread_sigmask(SIG_SETMASK, &mask, NULL);
	pthread_barrier_wait(&end);
	for (;;) {
		pthread_barrier_wait(&begin);
		if (mine != who * 1000003)
			wrong("the local value", who);
		prctl(PR_GET_NAME, seen);
		if (strcmp(name, seen))
			wrong("the name", who);
		pthread_sigmask(SIG_SETMASK, NULL, &now);
		for (int s = 1; s <= SIGRTMAX; s++)
			if (sigismember(&mask, s) != sigismember(&now, s))
				wrong("the mask", who);
		pthread_barrier_wait(&end);
	}
	return NULL;
}

int main(int argc, char **argv) {
	long count = argc > 1 ? atol(argv[1]) : 8;
	sigset_t usr1;

	setvbuf(stdout, NULL, _IOLBF, 0);
	sigemptyset(&usr1);
	sigaddset(&usr1, SIGUSR1);
	sigprocmask(SIG_BLOCK, &usr1, NULL);
	pthread_barrier_init(&begin, NULL, (unsigned)count + 1);
	pthread_barrier_init(&end, NULL, (unsigned)count + 1);
	for (long i = 1; i <= count; i++) {
		pthread_t thread;
		if (pthread_create(&thread, NULL, work, (void *)i))
			return 2;
	}
	pthread_barrier_wait(&end);
	printf("ready %ld\n", count);
	for (long turn = 1;; turn++) {
		int signal;
		if (sigwait(&usr1, &signal))
			return 2;
		pthread_barrier_wait(&begin);
		pthread_barrier_wait(&end);
		printf("turn %ld %ld\n", turn, count);
	}
}
