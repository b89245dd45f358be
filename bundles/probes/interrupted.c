/* Code that is interrupted where only the kernel knows how it goes on.
 *
 * interrupted calls     stops itself; each thread is in a system call and has a
 *                       signal with a handler pending; then "ready"
 * interrupted sections  two threads spend all their time in an rseq section
 *                       that ends in no other way than by its abort; then "ready"
 * SIGUSR1 (and SIGCONT) "right", or "wrong WHAT" and exit code 1
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/rseq.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static void wrong(const char *what, const char *how) {
	printf("wrong %s: %s\n", what, how);
	exit(1);
}

/* ---- calls */

#define RESTARTS (SIGRTMIN + 6)
#define PLAIN (SIGRTMIN + 7)

struct waiter;
typedef long Call(struct waiter *);

struct waiter {
	const char *name;
	Call *call;
	int with_restart;  /* SA_RESTART of the handler that is pending */
	int goes_on;       /* the call goes on after the handler; else EINTR */
	int ends[2];
	uint32_t word;
	atomic_int tid, handled, returned, errno_seen;
	long result;
};

static long in_read(struct waiter *w) { char c; return read(w->ends[0], &c, 1); }
static long in_futex(struct waiter *w) { return syscall(SYS_futex, &w->word, FUTEX_WAIT, 0, NULL, NULL, 0) ? -1 : 1; }
static long in_futex_timed(struct waiter *w) { struct timespec t = { 500, 0 }; return syscall(SYS_futex, &w->word, FUTEX_WAIT, 0, &t, NULL, 0); }
static long in_poll(struct waiter *w) { struct pollfd f = { w->ends[0], POLLIN, 0 }; return poll(&f, 1, -1); }
static long in_pause(struct waiter *w) { return pause(); }
static long in_nanosleep(struct waiter *w) { struct timespec t = { 500, 0 }; return nanosleep(&t, &t); }
static long in_sigtimedwait(struct waiter *w) { sigset_t s; struct timespec t = { 500, 0 }; sigemptyset(&s); sigaddset(&s, SIGRTMIN + 9); return sigtimedwait(&s, NULL, &t); }
static long in_recv(struct waiter *w) { char c; return recv(w->ends[0], &c, 1, 0); }

static long in_recv_timed(struct waiter *w) {
	struct timeval t = { 500, 0 };
	char c;
	setsockopt(w->ends[0], SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t);
	return recv(w->ends[0], &c, 1, 0);
}

static long in_epoll_wait(struct waiter *w) {
	struct epoll_event e = { .events = EPOLLIN };
	int set = epoll_create1(0);
	epoll_ctl(set, EPOLL_CTL_ADD, w->ends[0], &e);
	return epoll_wait(set, &e, 1, -1);
}

/* The signal is let in by the call only. */
static long in_sigsuspend(struct waiter *w) {
	sigset_t set, out;
	sigemptyset(&out);
	sigaddset(&out, RESTARTS);
	pthread_sigmask(SIG_BLOCK, &out, &set);
	return sigsuspend(&set);
}

/* The signal is let in by the call and around it. */
static long in_sigsuspend_open(struct waiter *w) {
	sigset_t set;
	pthread_sigmask(SIG_BLOCK, NULL, &set);
	return sigsuspend(&set);
}

static long in_ppoll(struct waiter *w) {
	struct pollfd f = { w->ends[0], POLLIN, 0 };
	sigset_t set, out;
	sigemptyset(&out);
	sigaddset(&out, RESTARTS);
	pthread_sigmask(SIG_BLOCK, &out, &set);
	return ppoll(&f, 1, NULL, &set);
}

/* The signal is kept out by the call only: it goes on. */
static long in_ppoll_blocked(struct waiter *w) {
	struct pollfd f = { w->ends[0], POLLIN, 0 };
	sigset_t set;
	pthread_sigmask(SIG_BLOCK, NULL, &set);
	sigaddset(&set, PLAIN);
	return ppoll(&f, 1, NULL, &set);
}

/* signal(7), "Interruption of system calls and library functions by signal handlers" */
static struct waiter waiters[] = {
	{ "read, SA_RESTART", in_read, 1, 1 },
	{ "read", in_read, 0, 0 },
	{ "futex, SA_RESTART", in_futex, 1, 1 },
	{ "futex", in_futex, 0, 0 },
	{ "futex with a timeout, SA_RESTART", in_futex_timed, 1, 0 },
	{ "recv, SA_RESTART", in_recv, 1, 1 },
	{ "recv with a timeout, SA_RESTART", in_recv_timed, 1, 0 },
	{ "poll, SA_RESTART", in_poll, 1, 0 },
	{ "ppoll that lets the signal in", in_ppoll, 1, 0 },
	{ "ppoll that keeps the signal out", in_ppoll_blocked, 0, 1 },
	{ "epoll_wait, SA_RESTART", in_epoll_wait, 1, 0 },
	{ "pause, SA_RESTART", in_pause, 1, 0 },
	{ "nanosleep, SA_RESTART", in_nanosleep, 1, 0 },
	{ "sigtimedwait, SA_RESTART", in_sigtimedwait, 1, 0 },
	{ "sigsuspend that lets the signal in", in_sigsuspend, 1, 0 },
	{ "sigsuspend", in_sigsuspend_open, 1, 0 },
};
#define WAITERS (sizeof waiters / sizeof *waiters)

static __thread struct waiter *mine;
static void on_signal(int signal) { mine->handled++; }

static void *wait_in_call(void *argument) {
	sigset_t open;
	struct waiter *w = mine = argument;
	sigemptyset(&open);
	sigaddset(&open, RESTARTS);
	sigaddset(&open, PLAIN);
	pthread_sigmask(SIG_UNBLOCK, &open, NULL);
	w->tid = gettid();
	errno = 0;
	w->result = w->call(w);
	w->errno_seen = errno;
	w->returned = 1;
	return NULL;
}

static char state_of(pid_t pid, pid_t tid) {
	char path[64], line[512], *end = NULL;
	snprintf(path, sizeof path, "/proc/%d/task/%d/stat", pid, tid);
	FILE *f = fopen(path, "r");
	if (f && fgets(line, sizeof line, f))
		end = strrchr(line, ')');
	if (f)
		fclose(f);
	return end ? end[2] : '?';
}

static void all_in(pid_t pid, char state) {
	for (size_t i = 0; i < WAITERS;)
		if (waiters[i].tid && state_of(pid, waiters[i].tid) == state)
			i++;
		else
			sched_yield();
}

static void hold_calls(void) {
	pid_t me = getpid();
	struct sigaction act = { .sa_handler = on_signal, .sa_flags = SA_RESTART };
	sigaction(RESTARTS, &act, NULL);
	act.sa_flags = 0;
	sigaction(PLAIN, &act, NULL);
	for (size_t i = 0; i < WAITERS; i++) {
		pthread_t t;
		if (socketpair(AF_UNIX, SOCK_STREAM, 0, waiters[i].ends) || pthread_create(&t, NULL, wait_in_call, &waiters[i]))
			wrong("setup", strerror(errno));
	}
	all_in(me, 'S');
	if (fork())
		return;
	/* from outside: a stopped process runs no handler */
	kill(me, SIGSTOP);
	all_in(me, 'T');
	for (size_t i = 0; i < WAITERS; i++)
		syscall(SYS_tgkill, me, waiters[i].tid, waiters[i].with_restart ? RESTARTS : PLAIN);
	printf("ready\n");
	_exit(0);
}

static void check_calls(void) {
	for (size_t i = 0; i < WAITERS; i++) {
		struct waiter *w = &waiters[i];
		/* a call that keeps the signal out is woken first */
		if (w->goes_on && w->call == in_ppoll_blocked && write(w->ends[1], "x", 1) != 1)
			wrong(w->name, "write");
		while (!w->handled)
			sched_yield();
		if (w->goes_on && w->call == in_futex) {
			/* whoever returned early is not there to be woken */
			while (!w->returned && !syscall(SYS_futex, &w->word, FUTEX_WAKE, 1, NULL, NULL, 0))
				sched_yield();
		} else if (w->goes_on && w->call != in_ppoll_blocked && write(w->ends[1], "x", 1) != 1) {
			wrong(w->name, "write");
		}
		while (!w->returned)
			sched_yield();
		if (w->handled != 1)
			wrong(w->name, "its handler ran more than once");
		if (w->goes_on && w->result != 1)
			wrong(w->name, w->errno_seen == EINTR ? "it failed with EINTR" : "it returned otherwise");
		if (!w->goes_on && (w->result != -1 || w->errno_seen != EINTR))
			wrong(w->name, "it did not fail with EINTR");
	}
}

/* ---- sections */

static atomic_int aborts[2];
static pthread_t threads[2];

/* One section: entered at its start, left by its abort only. */
static void section(void) {
	struct rseq *area = (struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset);
	__asm__ goto(
		".pushsection __rseq_cs, \"aw\"\n"
		".balign 32\n"
		"9: .long 0, 0\n"
		".quad 1f, 2f - 1f, 4f\n"
		".popsection\n"
		"leaq 9b(%%rip), %%rax\n"
		"movq %%rax, %0\n"
		"1: pause\n"
		"jmp 1b\n"
		"2: nop\n"
		".pushsection .text.aborts, \"ax\"\n"
		".byte 0x0f, 0xb9, 0x3d\n"
		".long %c1\n"
		"4: jmp %l[aborted]\n"
		".popsection\n"
		:
		: "m"(area->rseq_cs), "i"(RSEQ_SIG)
		: "rax", "memory"
		: aborted);
	wrong("section", "it came to an end");
aborted:
	return;
}

static void *in_sections(void *argument) {
	for (;;) {
		section();
		aborts[(long)argument]++;
	}
	return NULL;
}

/* A signal to a thread aborts its section. Where an abort was missed it does
 * not: the section is stuck, it is never left. */
static void all_abort(void) {
	for (int i = 0; i < 2; i++)
		for (int before = aborts[i]; aborts[i] == before;) {
			pthread_kill(threads[i], SIGUSR2);
			sched_yield();
		}
}

static void ignored(int signal) { }

static void hold_sections(void) {
	if (__rseq_size == 0)
		wrong("setup", "no rseq");
	signal(SIGUSR2, ignored);
	for (long i = 0; i < 2; i++)
		if (pthread_create(&threads[i], NULL, in_sections, (void *)i))
			wrong("setup", strerror(errno));
	all_abort();
	printf("ready\n");
}

int main(int argc, char **argv) {
	sigset_t usr1;
	int calls = argc > 1 && !strcmp(argv[1], "calls");
	setvbuf(stdout, NULL, _IOLBF, 0);
	sigemptyset(&usr1);
	sigaddset(&usr1, SIGUSR1);
	sigprocmask(SIG_BLOCK, &usr1, NULL);
	calls ? hold_calls() : hold_sections();
	while (sigwaitinfo(&usr1, NULL) != SIGUSR1)
		;
	calls ? check_calls() : all_abort();
	printf("right\n");
	return 0;
}
