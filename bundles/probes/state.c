/* What a task is, one facet at a time: holds it, and checks it when asked.
 *
 * state FACET    holds FACET, then "ready"
 * SIGUSR1        checks it: "right", or "wrong WHAT" and exit code 1
 *
 * Facets: signals timers credentials seccomp rlimits memory waits family
 *         threads vectors properties clock
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/filter.h>
#include <linux/capability.h>
#include <linux/futex.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void wrong(const char *what) {
	printf("wrong %s (errno %d)\n", what, errno);
	exit(1);
}
#define CHECK(what, x) do { if (!(x)) wrong(what); } while (0)
#define MUST(x) CHECK("setup: " #x, (x))

/* ---- signals: actions, masks, an alternate stack, queued signals with values */

static char altstack[65536];
static volatile sig_atomic_t handled, on_altstack;

static void handler(int signal, siginfo_t *info, void *context) {
	char here;
	handled += signal == SIGUSR2 && info->si_code == SI_TKILL;
	on_altstack = &here >= altstack && &here < altstack + sizeof altstack;
}

static void signals_hold(void) {
	stack_t ss = { .ss_sp = altstack, .ss_size = sizeof altstack };
	MUST(!sigaltstack(&ss, NULL));
	struct sigaction sa = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART };
	sigaddset(&sa.sa_mask, SIGHUP);
	MUST(!sigaction(SIGUSR2, &sa, NULL));
	signal(SIGPIPE, SIG_IGN);
	signal(SIGTRAP, SIG_IGN);
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	sigaddset(&set, SIGRTMIN + 1);
	sigprocmask(SIG_BLOCK, &set, NULL);
	for (int i = 7; i < 10; i++)
		MUST(!sigqueue(getpid(), SIGRTMIN + 1, (union sigval){ .sival_int = i }));
	pthread_kill(pthread_self(), SIGUSR2);
}

static void signals_check(void) {
	struct sigaction sa;
	stack_t ss;
	sigset_t set;
	MUST(!sigaction(SIGUSR2, NULL, &sa));
	CHECK("action", sa.sa_sigaction == handler && sigismember(&sa.sa_mask, SIGHUP) && !sigismember(&sa.sa_mask, SIGINT));
	CHECK("flags", (sa.sa_flags & ~0x04000000) == (SA_SIGINFO | SA_ONSTACK | SA_RESTART));
	MUST(!sigaction(SIGPIPE, NULL, &sa));
	CHECK("ignored SIGPIPE", sa.sa_handler == SIG_IGN);
	MUST(!sigaction(SIGTRAP, NULL, &sa));
	CHECK("ignored SIGTRAP", sa.sa_handler == SIG_IGN);
	MUST(!sigaltstack(NULL, &ss));
	CHECK("alternate stack", ss.ss_sp == altstack && ss.ss_size == sizeof altstack);
	sigprocmask(SIG_BLOCK, NULL, &set);
	CHECK("mask", sigismember(&set, SIGUSR2) && sigismember(&set, SIGRTMIN + 1) && !sigismember(&set, SIGHUP));
	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN + 1);
	for (int i = 7; i < 10; i++) {
		siginfo_t info;
		struct timespec none = { 0 };
		CHECK("queued signal", sigtimedwait(&set, &info, &none) == SIGRTMIN + 1);
		CHECK("value of a queued signal", info.si_value.sival_int == i && info.si_code == SI_QUEUE && info.si_pid == getpid());
	}
	CHECK("a signal handled early", handled == 0);
	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	sigprocmask(SIG_UNBLOCK, &set, NULL);
	CHECK("pending signal of the thread", handled == 1);
	CHECK("use of the alternate stack", on_altstack);
}

/* ---- timers */

static timer_t timers[4];
static volatile sig_atomic_t fired;

static void on_timer(int signal, siginfo_t *info, void *context) {
	fired += info->si_code == SI_TIMER && info->si_value.sival_int == 77;
}

static void timers_hold(void) {
	struct itimerval it = { { 1000, 500000 }, { 2000, 250000 } };
	MUST(!setitimer(ITIMER_REAL, &it, NULL));
	MUST(!setitimer(ITIMER_PROF, &it, NULL));
	struct sigaction sa = { .sa_sigaction = on_timer, .sa_flags = SA_SIGINFO | SA_RESTART };
	MUST(!sigaction(SIGRTMIN + 2, &sa, NULL));
	for (int i = 0; i < 4; i++) {
		struct sigevent ev = { .sigev_notify = i == 3 ? SIGEV_NONE : SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 2, .sigev_value.sival_int = 77 };
		MUST(!timer_create(i == 2 ? CLOCK_MONOTONIC : CLOCK_REALTIME, &ev, &timers[i]));
	}
	MUST(!timer_delete(timers[1]));
	struct itimerspec far = { { 5000, 17 }, { 6000, 0 } }, fast = { { 0, 20000000 }, { 0, 20000000 } };
	MUST(!timer_settime(timers[0], 0, &far, NULL));
	MUST(!timer_settime(timers[2], 0, &fast, NULL));
}

static void timers_check(void) {
	struct itimerval it;
	struct itimerspec its;
	MUST(!getitimer(ITIMER_REAL, &it));
	CHECK("interval timer", it.it_interval.tv_sec == 1000 && it.it_interval.tv_usec == 500000 && it.it_value.tv_sec > 1900 && it.it_value.tv_sec <= 2000);
	MUST(!getitimer(ITIMER_PROF, &it));
	CHECK("profiling timer", it.it_interval.tv_sec == 1000 && it.it_value.tv_sec > 1900);
	CHECK("timer 0", !timer_gettime(timers[0], &its) && its.it_interval.tv_sec == 5000 && its.it_interval.tv_nsec == 17 && its.it_value.tv_sec > 5900 && its.it_value.tv_sec <= 6000);
	CHECK("a deleted timer", syscall(SYS_timer_gettime, (int)(intptr_t)timers[1], &its) == -1 && errno == EINVAL);
	CHECK("timer 3", !timer_gettime(timers[3], &its) && its.it_value.tv_sec == 0);
	sigset_t none;
	sigemptyset(&none);
	for (int before = fired; fired < before + 2;)
		sigsuspend(&none);
}

/* ---- credentials */

static const gid_t groups[] = { 7, 1003, 70000 };
static struct __user_cap_data_struct caps[2];

static void credentials_hold(void) {
	struct __user_cap_header_struct head = { _LINUX_CAPABILITY_VERSION_3, 0 };
	MUST(!prctl(PR_CAPBSET_DROP, CAP_SYS_BOOT));
	MUST(!setgroups(3, groups));
	MUST(!setresgid(1001, 1002, 1003));
	MUST(!prctl(PR_SET_SECUREBITS, 0x15));
	MUST(!setresuid(2001, 2002, 2003));
	caps[0].permitted = caps[0].effective = (1u << CAP_CHOWN) | (1u << CAP_KILL);
	caps[0].effective = 1u << CAP_KILL;
	caps[0].inheritable = 1u << CAP_KILL;
	MUST(!syscall(SYS_capset, &head, caps));
	MUST(!prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_KILL, 0, 0) || 1);
	MUST(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
}

static void credentials_check(void) {
	struct __user_cap_header_struct head = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct now[2];
	uid_t r, e, s;
	gid_t have[8];
	MUST(!getresuid(&r, &e, &s));
	CHECK("uids", r == 2001 && e == 2002 && s == 2003);
	MUST(!getresgid(&r, &e, &s));
	CHECK("gids", r == 1001 && e == 1002 && s == 1003);
	CHECK("groups", getgroups(8, have) == 3 && !memcmp(have, groups, sizeof groups));
	MUST(!syscall(SYS_capget, &head, now));
	CHECK("capabilities", !memcmp(now, caps, sizeof caps));
	CHECK("securebits", prctl(PR_GET_SECUREBITS) == 0x15);
	CHECK("no_new_privs", prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1);
	CHECK("bounding set", prctl(PR_CAPBSET_READ, CAP_SYS_BOOT) == 0 && prctl(PR_CAPBSET_READ, CAP_CHOWN) == 1);
}

/* ---- seccomp: two filters, the newer of which wins */

static void filter_call(int nr, int error) {
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, nr, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | error),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog prog = { 4, code };
	MUST(!prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog));
}

static void seccomp_hold(void) {
	MUST(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	filter_call(SYS_uname, EXDEV);
	filter_call(SYS_getpriority, ENOTTY);
}

static void seccomp_check(void) {
	struct utsname u;
	CHECK("first filter", syscall(SYS_uname, &u) == -1 && errno == EXDEV);
	CHECK("second filter", syscall(SYS_getpriority, 0, 0) == -1 && errno == ENOTTY);
	CHECK("mode", prctl(PR_GET_SECCOMP) == 2);
	CHECK("an allowed call", getppid() > 0 || getpid() == 1);
}

/* ---- resource limits */

static void rlimits_hold(void) {
	struct rlimit files = { 777, 1500 }, core = { 0, 4096 }, stack = { 1 << 20, 64 << 20 };
	MUST(!setrlimit(RLIMIT_NOFILE, &files) && !setrlimit(RLIMIT_CORE, &core) && !setrlimit(RLIMIT_STACK, &stack));
}

static void rlimits_check(void) {
	struct rlimit files, core, stack;
	MUST(!getrlimit(RLIMIT_NOFILE, &files) && !getrlimit(RLIMIT_CORE, &core) && !getrlimit(RLIMIT_STACK, &stack));
	CHECK("RLIMIT_NOFILE", files.rlim_cur == 777 && files.rlim_max == 1500);
	CHECK("RLIMIT_CORE", core.rlim_cur == 0 && core.rlim_max == 4096);
	CHECK("RLIMIT_STACK", stack.rlim_cur == 1 << 20 && stack.rlim_max == 64 << 20);
}

/* ---- memory of every kind */

#define MIB (1ul << 20)
static unsigned char *plain, *none, *shared, *advised, *guarded, *down, *locked, *file_private, *file_shared, *readonly;
static int memory_pipe[2];
static pid_t memory_child;
static char text_path[64];

static unsigned char pattern(size_t i) {
	return (unsigned char)(i * 131 + (i >> 12) * 17 + 3);
}

static void fill(unsigned char *p, size_t n) {
	for (size_t i = 0; i < n; i++)
		p[i] = pattern(i);
}

static int holds(unsigned char *p, size_t n) {
	for (size_t i = 0; i < n; i++)
		if (p[i] != pattern(i))
			return 0;
	return 1;
}

static int vm_flag(void *address, const char *word) {
	FILE *f = fopen("/proc/self/smaps", "r");
	char line[512];
	int inside = 0, found = 0;
	while (f && fgets(line, sizeof line, f)) {
		unsigned long start, end;
		if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
			inside = start <= (unsigned long)address && (unsigned long)address < end;
		else if (inside && !strncmp(line, "VmFlags:", 8))
			found = strstr(line, word) != NULL;
	}
	if (f)
		fclose(f);
	return found;
}

static void *area(size_t n, int prot, int flags, int fd) {
	void *p = mmap(NULL, n, prot, flags, fd, 0);
	MUST(p != MAP_FAILED);
	return p;
}

static void memory_hold(void) {
	int rw = PROT_READ | PROT_WRITE, anon = MAP_PRIVATE | MAP_ANONYMOUS;
	plain = area(4 * MIB, rw, anon, -1);
	fill(plain, 2 * MIB);
	none = area(MIB, rw, anon, -1);
	fill(none, MIB);
	MUST(!mprotect(none, MIB, PROT_NONE));
	readonly = area(MIB, rw, anon, -1);
	fill(readonly, MIB);
	MUST(!mprotect(readonly, MIB, PROT_READ));
	advised = area(4 * MIB, rw, anon, -1);
	MUST(!madvise(advised, 4 * MIB, MADV_HUGEPAGE) && !madvise(advised, 4 * MIB, MADV_DONTDUMP));
	fill(advised, 4 * MIB);
	guarded = area(MIB, rw, anon, -1);
	fill(guarded, MIB);
	if (madvise(guarded + 8192, 8192, 102 /* MADV_GUARD_INSTALL */))
		guarded = NULL;
	down = area(16 * 4096, rw, anon | MAP_GROWSDOWN, -1);
	fill(down, 16 * 4096);
	locked = area(8 * 4096, rw, anon, -1);
	fill(locked, 8 * 4096);
	MUST(!mlock(locked, 8 * 4096));
	snprintf(text_path, sizeof text_path, "/tmp/state-memory-%d", getpid());
	int fd = open(text_path, O_RDWR | O_CREAT | O_TRUNC, 0600);
	MUST(fd >= 0 && !ftruncate(fd, MIB));
	file_shared = area(MIB, rw, MAP_SHARED, fd);
	fill(file_shared, MIB);
	file_private = area(MIB, rw, MAP_PRIVATE, fd);
	memset(file_private + 4096, 0x5a, 4096);
	close(fd);
	shared = area(2 * MIB, rw, MAP_SHARED | MAP_ANONYMOUS, -1);
	fill(shared, MIB);
	MUST(!pipe(memory_pipe));
	memory_child = fork();
	if (!memory_child) {
		char c;
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		while (read(memory_pipe[0], &c, 1) == 1)
			shared[MIB + 1] = holds(shared, MIB) && plain[0] == pattern(0) ? c : '!';
		_exit(0);
	}
}

static void memory_check(void) {
	CHECK("plain memory", holds(plain, 2 * MIB));
	for (size_t i = 2 * MIB; i < 4 * MIB; i++)
		CHECK("memory never touched", plain[i] == 0);
	CHECK("read-only memory", holds(readonly, MIB));
	CHECK("protection", !mprotect(none, MIB, PROT_READ) && holds(none, MIB));
	CHECK("advised memory", holds(advised, 4 * MIB));
	CHECK("advice", vm_flag(advised, " hg") && vm_flag(advised, " dd"));
	if (guarded) {
		CHECK("memory before a guard", holds(guarded, 8192));
		int fd[2];
		MUST(!pipe(fd));
		CHECK("a guard page", write(fd[1], guarded + 8192, 1) == -1 && errno == EFAULT);
		CHECK("memory after a guard", guarded[16384] == pattern(16384));
	}
	CHECK("growing memory", holds(down, 16 * 4096) && vm_flag(down, " gd"));
	CHECK("locked memory", holds(locked, 8 * 4096) && vm_flag(locked, " lo"));
	CHECK("shared file memory", holds(file_shared, MIB));
	CHECK("changed page of a private mapping", file_private[4096] == 0x5a && file_private[8191] == 0x5a);
	file_shared[8192] ^= 0xff;
	CHECK("clean page of a private mapping", file_private[8192] == file_shared[8192]);
	file_shared[8192] ^= 0xff;
	CHECK("shared memory", holds(shared, MIB));
	MUST(write(memory_pipe[1], "k", 1) == 1);
	for (int i = 0; i < 5000 && shared[MIB + 1] != 'k'; i++)
		usleep(1000);
	CHECK("memory shared with a child", shared[MIB + 1] == 'k');
	unlink(text_path);
}

/* ---- waits: calls that must not notice that they were interrupted */

static int wait_pipe[2], wait_epoll;
static atomic_int returned, ready;
static uint32_t word;
static const char *returned_what;

static void noticed(const char *what) {
	returned_what = what;
	returned++;
	for (;;)
		pause();
}

static void *wait_read(void *p) { char c; ready++; if (read(wait_pipe[0], &c, 1)) noticed("read"); return p; }
static void *wait_epoll_(void *p) { struct epoll_event e; ready++; epoll_wait(wait_epoll, &e, 1, -1); noticed("epoll_wait"); return p; }
static void *wait_sleep(void *p) { struct timespec t = { 500, 0 }, r; ready++; nanosleep(&t, &r); noticed("nanosleep"); return p; }
static void *wait_clock(void *p) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); t.tv_sec += 500; ready++; clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL); noticed("clock_nanosleep"); return p; }
static void *wait_poll(void *p) { struct pollfd f = { wait_pipe[0], POLLIN, 0 }; ready++; poll(&f, 1, 500000); noticed("poll"); return p; }
static void *wait_futex(void *p) { struct timespec t = { 500, 0 }; ready++; syscall(SYS_futex, &word, FUTEX_WAIT, 0, &t, NULL, 0); noticed("futex"); return p; }
static void *wait_signal(void *p) { sigset_t s; struct timespec t = { 500, 0 }; sigemptyset(&s); sigaddset(&s, SIGRTMIN + 5); ready++; sigtimedwait(&s, NULL, &t); noticed("sigtimedwait"); return p; }

static void waits_hold(void) {
	void *(*all[])(void *) = { wait_read, wait_epoll_, wait_sleep, wait_clock, wait_poll, wait_futex, wait_signal };
	MUST(!pipe(wait_pipe));
	wait_epoll = epoll_create1(0);
	struct epoll_event e = { .events = EPOLLIN };
	MUST(!epoll_ctl(wait_epoll, EPOLL_CTL_ADD, wait_pipe[0], &e));
	for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
		pthread_t t;
		MUST(!pthread_create(&t, NULL, all[i], NULL));
	}
	while (ready < (int)(sizeof all / sizeof *all))
		sched_yield();
	/* until all of them wait in the kernel */
	for (int asleep = 0; asleep < 7;) {
		asleep = 0;
		for (int i = 1; i <= 7; i++) {
			char path[64], line[512], *state;
			snprintf(path, sizeof path, "/proc/self/task/%d/stat", getpid() + i);
			FILE *f = fopen(path, "r");
			if (f && fgets(line, sizeof line, f) && (state = strrchr(line, ')')))
				asleep += state[2] == 'S';
			else
				asleep++; /* numbered otherwise: do not wait for it */
			if (f)
				fclose(f);
		}
	}
}

static void waits_check(void) {
	if (returned)
		wrong(returned_what);
	word = 1;
	syscall(SYS_futex, &word, FUTEX_WAKE, 1, NULL, NULL, 0);
	for (int i = 0; i < 5000 && returned < 1; i++)
		usleep(1000);
	CHECK("a futex that can be woken", returned == 1);
}

/* ---- family: sessions, groups, zombies, a stopped child */

static pid_t leader, member, dead, killed, stopped, orphan_session;

static pid_t child(void (*work)(void)) {
	pid_t pid = fork();
	if (!pid) {
		sigset_t all;
		sigfillset(&all);
		sigprocmask(SIG_UNBLOCK, &all, NULL);
		signal(SIGUSR1, SIG_DFL);
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (work)
			work();
		for (;;)
			pause();
	}
	return pid;
}

static void become_leader(void) { setsid(); }
static void end_3(void) { _exit(3); }

static void state_is(pid_t pid, char want) {
	char path[64], line[512], *state = NULL;
	do {
		snprintf(path, sizeof path, "/proc/%d/stat", pid);
		FILE *f = fopen(path, "r");
		state = f && fgets(line, sizeof line, f) ? strrchr(line, ')') : NULL;
		if (f)
			fclose(f);
		MUST(state);
	} while (state[2] != want);
}

static void family_hold(void) {
	leader = child(become_leader);
	while (getsid(leader) != leader)
		sched_yield();
	member = child(NULL);
	MUST(!setpgid(member, member));
	orphan_session = child(NULL);
	MUST(!setpgid(orphan_session, member));
	dead = child(end_3);
	killed = child(NULL);
	kill(killed, SIGTERM);
	stopped = child(NULL);
	kill(stopped, SIGSTOP);
	state_is(dead, 'Z');
	state_is(killed, 'Z');
	state_is(stopped, 'T');
}

static void family_check(void) {
	int status;
	CHECK("session of a leader", getsid(leader) == leader && getpgid(leader) == leader);
	CHECK("group of a member", getpgid(member) == member && getsid(member) == getsid(0));
	CHECK("group shared", getpgid(orphan_session) == member);
	CHECK("zombie that exited", waitpid(dead, &status, 0) == dead && WIFEXITED(status) && WEXITSTATUS(status) == 3);
	CHECK("zombie that was killed", waitpid(killed, &status, 0) == killed && WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM);
	state_is(stopped, 'T');
	CHECK("stopped child", !kill(stopped, SIGCONT));
	for (char line[512], *state = "xx ";; ) {
		char path[64];
		snprintf(path, sizeof path, "/proc/%d/stat", stopped);
		FILE *f = fopen(path, "r");
		state = f && fgets(line, sizeof line, f) ? strrchr(line, ')') : NULL;
		if (f)
			fclose(f);
		CHECK("stopped child goes on", state);
		if (state[2] == 'S')
			break;
		sched_yield();
	}
	pid_t all[] = { leader, member, orphan_session, stopped };
	for (int i = 0; i < 4; i++) {
		CHECK("a child that can be killed", !kill(all[i], SIGKILL));
		CHECK("a child that is ours", waitpid(all[i], &status, 0) == all[i] && WTERMSIG(status) == SIGKILL);
	}
}

/* ---- vectors: registers of every width, kept by a thread that never calls */

static atomic_int vectors_stop, vectors_ready, vectors_bad;

__attribute__((target("avx512f"))) static void keep_512(uint64_t *seed, uint64_t *out) {
	__asm__ volatile(
		"vpbroadcastq (%1), %%zmm0\n vpaddq %%zmm0, %%zmm0, %%zmm17\n vpaddq %%zmm17, %%zmm0, %%zmm31\n"
		"movl $0x5a5a, %%eax\n kmovw %%eax, %%k3\n movl $1, %3\n"
		"1: cmpl $0, %2\n je 1b\n"
		"vmovdqu64 %%zmm0, (%0)\n vmovdqu64 %%zmm17, 64(%0)\n vmovdqu64 %%zmm31, 128(%0)\n kmovw %%k3, %%eax\n movq %%rax, 192(%0)\n"
		: : "r"(out), "r"(seed), "m"(vectors_stop), "m"(vectors_ready) : "rax", "memory", "xmm0");
}

static void keep_128(uint64_t *seed, uint64_t *out) {
	__asm__ volatile(
		"movups (%1), %%xmm15\n fldpi\n movl $1, %3\n"
		"1: cmpl $0, %2\n je 1b\n"
		"movups %%xmm15, (%0)\n fstpt 64(%0)\n"
		: : "r"(out), "r"(seed), "m"(vectors_stop), "m"(vectors_ready) : "memory", "xmm15");
}

static void *vectors_work(void *p) {
	uint64_t seed[8] = { 0x1122334455667788, 0x99aabbccddeeff00 }, out[32] = { 0 };
	if (__builtin_cpu_supports("avx512f")) {
		keep_512(seed, out);
		for (int i = 0; i < 8; i++)
			vectors_bad += out[i] != seed[0] || out[8 + i] != 2 * seed[0] || out[16 + i] != 3 * seed[0];
		vectors_bad += out[24] != 0x5a5a;
	} else {
		long double pi;
		keep_128(seed, out);
		memcpy(&pi, out + 8, 10);
		vectors_bad += out[0] != seed[0] || out[1] != seed[1] || pi < 3.14159L || pi > 3.1416L;
	}
	return p;
}

static pthread_t vectors_thread;
static void vectors_hold(void) {
	MUST(!pthread_create(&vectors_thread, NULL, vectors_work, NULL));
	while (!vectors_ready)
		sched_yield();
}
static void vectors_check(void) {
	vectors_stop = 1;
	pthread_join(vectors_thread, NULL);
	CHECK("vector registers", vectors_bad == 0);
}

/* ---- threads: robust locks, names, local memory */

static pthread_mutex_t robust;
static __thread long local = 5;
static atomic_int threads_go, threads_ready;

static void *holder(void *p) {
	local = 41;
	prctl(PR_SET_NAME, "the holder");
	pthread_mutex_lock(&robust);
	threads_ready = 1;
	while (!threads_go)
		usleep(1000);
	char name[16];
	prctl(PR_GET_NAME, name);
	return (void *)(intptr_t)(local == 41 && !strcmp(name, "the holder"));
}

static pthread_t threads_holder;
static void threads_hold(void) {
	pthread_mutexattr_t a;
	pthread_mutexattr_init(&a);
	pthread_mutexattr_setrobust(&a, PTHREAD_MUTEX_ROBUST);
	pthread_mutex_init(&robust, &a);
	MUST(!pthread_create(&threads_holder, NULL, holder, NULL));
	while (!threads_ready)
		sched_yield();
}
static void threads_check(void) {
	void *good;
	CHECK("a lock that is held", pthread_mutex_trylock(&robust) == EBUSY);
	threads_go = 1;
	CHECK("a thread's end", !pthread_join(threads_holder, &good)); /* clear_child_tid */
	CHECK("local memory and name", good != NULL);
	CHECK("a robust lock whose owner died", pthread_mutex_lock(&robust) == EOWNERDEAD);
	local++;
	CHECK("own local memory", local == 6);
}

/* ---- small properties */

static void properties_hold(void) {
	struct sched_param none = { 0 };
	MUST(!prctl(PR_SET_CHILD_SUBREAPER, 1) && !prctl(PR_SET_PDEATHSIG, SIGWINCH) && !prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0));
	MUST(!prctl(PR_SET_NAME, "a (odd) name"));
	umask(027);
	MUST(!sched_setscheduler(0, SCHED_BATCH, &none) && !setpriority(PRIO_PROCESS, 0, 7));
	MUST(personality(ADDR_NO_RANDOMIZE) >= 0);
	MUST(!chdir("/usr"));
	FILE *f = fopen("/proc/self/oom_score_adj", "w");
	MUST(f && fputs("321", f) >= 0 && !fclose(f));
	MUST(!prctl(PR_SET_DUMPABLE, 0));
	MUST(!prctl(PR_SET_DUMPABLE, 1));
}

static void properties_check(void) {
	int value = 0;
	char name[16], dir[256];
	CHECK("child subreaper", !prctl(PR_GET_CHILD_SUBREAPER, &value) && value == 1);
	CHECK("parent death signal", !prctl(PR_GET_PDEATHSIG, &value) && value == SIGWINCH);
	CHECK("huge pages switched off", prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0) == 1);
	CHECK("name", !prctl(PR_GET_NAME, name) && !strcmp(name, "a (odd) name"));
	CHECK("umask", umask(0) == 027);
	CHECK("scheduling", sched_getscheduler(0) == SCHED_BATCH && getpriority(PRIO_PROCESS, 0) == 7);
	CHECK("personality", personality(0xffffffff) == ADDR_NO_RANDOMIZE);
	CHECK("working directory", getcwd(dir, sizeof dir) && !strcmp(dir, "/usr"));
	FILE *f = fopen("/proc/self/oom_score_adj", "r");
	CHECK("oom_score_adj", f && fscanf(f, "%d", &value) == 1 && value == 321);
	CHECK("dumpable", prctl(PR_GET_DUMPABLE) == 1);
	f = fopen("/proc/self/cmdline", "r");
	CHECK("command line", f && fgets(dir, sizeof dir, f) && strstr(dir, "state") && !strcmp(dir + strlen(dir) + 1, "properties"));
	CHECK("environment", getenv("STATE_PROBE") && !strcmp(getenv("STATE_PROBE"), "kept"));
	void *before = sbrk(0);
	CHECK("heap that grows", sbrk(4096) == before && sbrk(0) == (char *)before + 4096);
}

/* ---- clock: through the vDSO, it never goes back nor jumps */

static struct timespec clock_before;
static void clock_hold(void) { clock_gettime(CLOCK_MONOTONIC, &clock_before); }
static void clock_check(void) {
	struct timespec vdso, real;
	clock_gettime(CLOCK_MONOTONIC, &vdso);
	syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &real);
	double passed = (double)(vdso.tv_sec - clock_before.tv_sec) + (double)(vdso.tv_nsec - clock_before.tv_nsec) / 1e9;
	CHECK("monotonic clock", passed >= 0 && passed < 120);
	CHECK("vdso clock", real.tv_sec - vdso.tv_sec <= 1 && real.tv_sec >= vdso.tv_sec);
}

#define FACET(name) { #name, name##_hold, name##_check }
static const struct { const char *name; void (*hold)(void), (*check)(void); } facets[] = {
	FACET(signals), FACET(timers), FACET(credentials), FACET(seccomp), FACET(rlimits), FACET(memory), FACET(waits),
	FACET(family), FACET(threads), FACET(vectors), FACET(properties), FACET(clock),
};

int main(int argc, char **argv) {
	sigset_t usr1;
	setvbuf(stdout, NULL, _IOLBF, 0);
	sigemptyset(&usr1);
	sigaddset(&usr1, SIGUSR1);
	sigprocmask(SIG_BLOCK, &usr1, NULL);
	for (size_t i = 0; argc > 1 && i < sizeof facets / sizeof *facets; i++) {
		if (strcmp(argv[1], facets[i].name))
			continue;
		facets[i].hold();
		printf("ready\n");
		while (sigwaitinfo(&usr1, NULL) != SIGUSR1)
			;
		facets[i].check();
		printf("right\n");
		return 0;
	}
	fprintf(stderr, "usage: state FACET\n");
	return 2;
}
