/* A tree of processes: sessions, groups, a zombie, and a pipe round them.
 *
 *   1 --- 2 (own session) --- 3 (own group in 2's session)
 *     \-- 4 (own group)       \-- 5 (group of 3)
 *     \-- zombie (exit code 7)
 *
 * tree           "ready", when all are there
 * SIGUSR1 to 1   a token goes through 2, 3, 5, 4 and back; each adds a line of
 *                "pid ppid pgid sid" that must be what it was at the start;
 *                "turn K" when it is back; the zombie is reaped in turn 1
 * What is wrong  "wrong WHO WHAT", exit code 1
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

struct self { pid_t pid, ppid, pgid, sid; };

static int ring[5][2]; /* ring[i]: into station i */

static struct self look(void) {
	return (struct self){getpid(), getppid(), getpgrp(), getsid(0)};
}

static void wrong(const char *who, const char *what) {
	printf("wrong %s %s\n", who, what);
	_exit(1);
}


static void member(const char *who, int station) {
	struct self first = look(), now;
	char token;
	for (;;) {
		if (read(ring[station][0], &token, 1) != 1)
			_exit(0);
		now = look();
		if (memcmp(&first, &now, sizeof now))
			wrong(who, "is another than it was");
		if (write(ring[(station + 1) % 5][1], &token, 1) != 1)
			_exit(1);
	}
}

static pid_t sprout(void) {
	pid_t pid = fork();
	if (pid < 0)
		exit(2);
	return pid;
}

int main(void) {
	sigset_t usr1;
	siginfo_t ended;
	pid_t zombie;

	setvbuf(stdout, NULL, _IOLBF, 0);
	sigemptyset(&usr1);
	sigaddset(&usr1, SIGUSR1);
	sigprocmask(SIG_BLOCK, &usr1, NULL);
	for (int i = 0; i < 5; i++)
		if (pipe(ring[i]))
			return 2;
	if (!sprout()) {
		setsid();
		if (!sprout()) {
			setpgid(0, 0);
			pid_t leader = getpid();
			if (!sprout()) {
				if (setpgid(0, leader))
					_exit(2);
				member("5", 3);
			}
			member("3", 2);
		}
		member("2", 1);
	}
	if (!sprout()) {
		setpgid(0, 0);
		member("4", 4);
	}
	zombie = sprout();
	if (!zombie)
		_exit(7);
	if (waitid(P_PID, zombie, &ended, WEXITED | WNOWAIT))
		return 2;
	/* A first turn tells that all have looked at themselves. */
	if (write(ring[1][1], "t", 1) != 1)
		return 2;
	char token;
	if (read(ring[0][0], &token, 1) != 1)
		return 2;
	printf("ready\n");
	for (int turn = 1;; turn++) {
		int signal, status;
		if (sigwait(&usr1, &signal))
			return 2;
		if (write(ring[1][1], "t", 1) != 1 || read(ring[0][0], &token, 1) != 1)
			wrong("1", "does not get its token back");
		if (turn == 1 && (waitpid(zombie, &status, 0) != zombie || !WIFEXITED(status) ||
				  WEXITSTATUS(status) != 7))
			wrong("1", "does not find its zombie");
		printf("turn %d\n", turn);
	}
}
