/* A session with a terminal: the parent leads it, a child is in the foreground.
 *
 * terminal      changes modes and size, then "ready"
 * the line "look" typed: the child says what its terminal is, on one line
 * ^G typed      "interrupted": it is the interrupt character here
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

static void interrupted(int signal) {
	static const char text[] = "interrupted\n";
	if (write(1, text, sizeof text - 1) < 0)
		_exit(2);
}

static void look(void) {
	struct winsize size;
	struct termios modes;
	int own = open("/dev/tty", O_RDWR);
	if (tcgetattr(0, &modes) || ioctl(0, TIOCGWINSZ, &size) || own < 0)
		printf("wrong terminal\n");
	else
		printf("%s %dx%d modes %x %x %x %x intr %d session %d group %d of %d own %d\n",
		       ttyname(0), size.ws_row, size.ws_col, modes.c_iflag, modes.c_oflag, modes.c_cflag,
		       modes.c_lflag, modes.c_cc[VINTR], tcgetsid(0), tcgetpgrp(own), getpgrp(), isatty(own));
	close(own);
}

int main(void) {
	struct winsize size = { 33, 77, 0, 0 };
	struct termios modes;
	setvbuf(stdout, NULL, _IOLBF, 0);
	signal(SIGTTOU, SIG_IGN);
	if (tcgetattr(0, &modes))
		return 2;
	modes.c_lflag &= ~(tcflag_t)ECHO;
	modes.c_oflag &= ~(tcflag_t)OPOST;
	modes.c_cc[VINTR] = 7;
	if (tcsetattr(0, TCSANOW, &modes) || ioctl(0, TIOCSWINSZ, &size))
		return 2;
	pid_t child = fork();
	if (!child) {
		char line[64];
		struct sigaction act = { .sa_handler = interrupted, .sa_flags = SA_RESTART };
		setpgid(0, 0);
		tcsetpgrp(0, getpid());
		sigaction(SIGINT, &act, NULL);
		printf("ready\n");
		while (fgets(line, sizeof line, stdin))
			if (!strcmp(line, "look\n"))
				look();
		return 0;
	}
	waitpid(child, NULL, 0);
	return 0;
}
