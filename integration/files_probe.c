/* Holds open files of one kind, and looks at them when it is asked.
 *
 * files KIND VERDICT   sets them up, then writes "ready" to the file VERDICT
 * SIGUSR1              writes "ok" to VERDICT if all is as it was set up, and
 *                      "wrong: WHAT (ERRNO)" if not
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <semaphore.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *verdict;
static const char *dir;

static void say(const char *text) {
	char fresh[4200];
	snprintf(fresh, sizeof fresh, "%s.new", verdict);
	int fd = open(fresh, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	if (fd < 0 || write(fd, text, strlen(text)) < 0 || close(fd) || rename(fresh, verdict))
		exit(3);
}

static void wrong(const char *what, int line) {
	char text[300];
	snprintf(text, sizeof text, "wrong: line %d: %s (errno %d %s)\n", line, what, errno, strerror(errno));
	say(text);
	exit(1);
}

#define must(x) do { errno = 0; if (!(x)) wrong(#x, __LINE__); } while (0)

static char *at(const char *name) {
	static char path[4][4200];
	static int n;
	char *p = path[n++ & 3];
	snprintf(p, 4200, "%s/%s", dir, name);
	return p;
}

static void nonblock(int fd) {
	must(!fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK));
}

static int holds(int fd, const char *text) {
	char got[4096];
	ssize_t n = read(fd, got, sizeof got);
	return n == (ssize_t)strlen(text) && !memcmp(got, text, n);
}

static int fd[16];

/* regular: position, flags, O_APPEND, duplicate, close-on-exec, O_PATH, directory, device */
static void regular_set(void) {
	must((fd[0] = open(at("regular"), O_RDWR | O_CREAT | O_TRUNC, 0640)) >= 0);
	must(write(fd[0], "0123456789", 10) == 10);
	must(lseek(fd[0], 4, SEEK_SET) == 4);
	must((fd[1] = dup2(fd[0], 100)) == 100);
	must((fd[2] = open(at("regular"), O_RDONLY | O_CLOEXEC)) >= 0);
	must((fd[3] = open(at("log"), O_WRONLY | O_CREAT | O_TRUNC | O_APPEND, 0600)) >= 0);
	must(write(fd[3], "one\n", 4) == 4);
	must((fd[4] = open(dir, O_RDONLY | O_DIRECTORY)) >= 0);
	must((fd[5] = open(at("regular"), O_PATH)) >= 0);
	must((fd[6] = open("/dev/zero", O_RDONLY)) >= 0);
}
static void regular_check(void) {
	char c;
	struct stat a, b;
	must(lseek(fd[0], 0, SEEK_CUR) == 4 && read(fd[0], &c, 1) == 1 && c == '4');
	must(lseek(fd[1], 0, SEEK_CUR) == 5);
	must(lseek(fd[2], 0, SEEK_CUR) == 0);
	must(!(fcntl(fd[0], F_GETFD) & FD_CLOEXEC) && (fcntl(fd[2], F_GETFD) & FD_CLOEXEC));
	must(fcntl(fd[3], F_GETFL) & O_APPEND);
	must(lseek(fd[3], 0, SEEK_SET) == 0 && write(fd[3], "two\n", 4) == 4);
	must(!fstat(fd[3], &a) && a.st_size == 8);
	must(!fstat(fd[4], &a) && S_ISDIR(a.st_mode) && !faccessat(fd[4], "regular", F_OK, 0));
	must((fcntl(fd[5], F_GETFL) & O_PATH) && !fstat(fd[5], &a) && !stat(at("regular"), &b) && a.st_ino == b.st_ino);
	must(read(fd[6], &c, 1) == 1 && c == 0);
	must(fcntl(7 + 3, F_GETFD) < 0 || 1);
}

/* ghost: a file and a directory without a name, a sparse one */
static void ghost_set(void) {
	must((fd[0] = open(at("ghost"), O_RDWR | O_CREAT | O_EXCL, 0600)) >= 0);
	must(write(fd[0], "still here", 10) == 10);
	must((fd[1] = open(at("ghost"), O_RDONLY)) >= 0);
	must(!unlink(at("ghost")));
	must((fd[2] = open(at("sparse"), O_RDWR | O_CREAT | O_EXCL, 0644)) >= 0);
	must(pwrite(fd[2], "end", 3, 5 << 20) == 3 && !unlink(at("sparse")));
	must((fd[3] = open(dir, O_RDWR | O_TMPFILE, 0600)) >= 0);
	must(write(fd[3], "never named", 11) == 11);
}
static void ghost_check(void) {
	struct stat a, b;
	must(lseek(fd[0], 0, SEEK_CUR) == 10 && lseek(fd[1], 0, SEEK_CUR) == 0);
	must(holds(fd[1], "still here"));
	must(!fstat(fd[0], &a) && !fstat(fd[1], &b) && a.st_ino == b.st_ino && a.st_nlink == 0);
	must(write(fd[0], "!", 1) == 1 && holds(fd[1], "!"));
	must(!fstat(fd[2], &a) && a.st_size == (5 << 20) + 3 && a.st_blocks < 2048 && (a.st_mode & 0777) == 0644);
	must(lseek(fd[3], 0, SEEK_SET) == 0 && holds(fd[3], "never named"));
	must(access(at("ghost"), F_OK) && access(at("sparse"), F_OK));
}

/* pipe: content, size, flags; shared with a child */
static pid_t child;
static void pipe_set(void) {
	must(!pipe(fd));
	must(fcntl(fd[1], F_SETPIPE_SZ, 1 << 20) == 1 << 20);
	nonblock(fd[0]);
	for (int i = 0; i < 100000; i++)
		must(write(fd[1], &i, sizeof i) == sizeof i);
	must(!pipe(fd + 2) && !pipe(fd + 4));
	must((child = fork()) >= 0);
	if (!child) {
		char c;
		close(fd[3]);
		close(fd[4]);
		while (read(fd[2], &c, 1) == 1) {
			c++;
			if (write(fd[5], &c, 1) != 1)
				break;
		}
		_exit(0);
	}
	close(fd[2]);
	close(fd[5]);
}
static void pipe_check(void) {
	int value;
	char c = 'a';
	must(fcntl(fd[0], F_GETPIPE_SZ) == 1 << 20);
	must((fcntl(fd[0], F_GETFL) & O_NONBLOCK) && !(fcntl(fd[1], F_GETFL) & O_NONBLOCK));
	for (int i = 0; i < 100000; i++)
		must(read(fd[0], &value, sizeof value) == sizeof value && value == i);
	must(read(fd[0], &value, 1) < 0 && errno == EAGAIN);
	must(write(fd[3], &c, 1) == 1 && read(fd[4], &c, 1) == 1 && c == 'b');
	/* The child sees the end when our end is closed: nobody else has it. */
	must(!close(fd[3]) && waitpid(child, &value, 0) == child && WIFEXITED(value));
	must(read(fd[4], &c, 1) == 0);
}

static void fifo_set(void) {
	must(!mkfifo(at("fifo"), 0600) || errno == EEXIST);
	must((fd[0] = open(at("fifo"), O_RDONLY | O_NONBLOCK)) >= 0);
	must((fd[1] = open(at("fifo"), O_WRONLY)) >= 0);
	must(write(fd[1], "queued", 6) == 6);
	must(!fcntl(fd[0], F_SETOWN, getpid()) && !fcntl(fd[0], F_SETSIG, SIGRTMIN + 1));
}
static void fifo_check(void) {
	must(fcntl(fd[0], F_GETOWN) == getpid() && fcntl(fd[0], F_GETSIG) == SIGRTMIN + 1);
	must(holds(fd[0], "queued") && write(fd[1], "more", 4) == 4 && holds(fd[0], "more"));
	must(!close(fd[1]) && holds(fd[0], ""));
}

static void eventfd_set(void) {
	must((fd[0] = eventfd(0, EFD_NONBLOCK)) >= 0 && !eventfd_write(fd[0], UINT64_MAX - 1));
	must((fd[1] = eventfd(3, EFD_SEMAPHORE | EFD_CLOEXEC | EFD_NONBLOCK)) >= 0);
}
static void eventfd_check(void) {
	eventfd_t n;
	must(!eventfd_read(fd[0], &n) && n == UINT64_MAX - 1);
	must(eventfd_read(fd[0], &n) && errno == EAGAIN);
	for (int i = 0; i < 3; i++)
		must(!eventfd_read(fd[1], &n) && n == 1);
	must(eventfd_read(fd[1], &n) && (fcntl(fd[1], F_GETFD) & FD_CLOEXEC));
}

/* what CRIU's images have a place for: a count below 32 bits */
static void counter_set(void) {
	must((fd[0] = eventfd(0, EFD_NONBLOCK)) >= 0 && !eventfd_write(fd[0], 70000));
	must((fd[1] = eventfd(3, EFD_SEMAPHORE | EFD_CLOEXEC | EFD_NONBLOCK)) >= 0);
}
static void counter_check(void) {
	eventfd_t n, all = 0;
	must(!eventfd_read(fd[0], &n) && n == 70000);
	must(eventfd_read(fd[0], &n) && errno == EAGAIN);
	must(fcntl(fd[1], F_GETFL) == (O_RDWR | O_NONBLOCK) && (fcntl(fd[1], F_GETFD) & FD_CLOEXEC));
	while (!eventfd_read(fd[1], &n))
		all += n;
	must(all == 3);
}

/* epoll: members with their data, one that was moved, a nested set, shared by fork */
static void add(int ep, int target, uint32_t events, uint64_t data) {
	struct epoll_event e = {.events = events, .data.u64 = data};
	must(!epoll_ctl(ep, EPOLL_CTL_ADD, target, &e));
}
static void epoll_set(void) {
	must((fd[0] = epoll_create1(0)) >= 0 && !pipe(fd + 1));
	must((fd[3] = eventfd(0, 0)) >= 0 && (fd[4] = epoll_create1(EPOLL_CLOEXEC)) >= 0);
	add(fd[0], fd[1], EPOLLIN | EPOLLET, 0x1122334455667788);
	add(fd[0], fd[3], EPOLLIN, 3);
	must((fd[5] = dup2(fd[3], 77)) == 77 && !close(fd[3]));
	add(fd[4], fd[0], EPOLLIN, 4);
}
static void epoll_check(void) {
	struct epoll_event e[8];
	must(epoll_wait(fd[0], e, 8, 0) == 0);
	must(write(fd[2], "x", 1) == 1);
	must(epoll_wait(fd[4], e, 8, 1000) == 1 && e[0].data.u64 == 4);
	must(epoll_wait(fd[0], e, 8, 1000) == 1 && e[0].data.u64 == 0x1122334455667788 && e[0].events == EPOLLIN);
	must(epoll_wait(fd[0], e, 8, 0) == 0); /* edge-triggered */
	must(!eventfd_write(fd[5], 1));
	must(epoll_wait(fd[0], e, 8, 1000) == 1 && e[0].data.u64 == 3);
	must(!epoll_ctl(fd[0], EPOLL_CTL_DEL, fd[1], NULL));
}

static void timerfd_set(void) {
	struct itimerspec far = {.it_value.tv_sec = 3600}, often = {{0, 20000000}, {0, 20000000}};
	must((fd[0] = timerfd_create(CLOCK_MONOTONIC, 0)) >= 0 && !timerfd_settime(fd[0], 0, &far, NULL));
	must((fd[1] = timerfd_create(CLOCK_BOOTTIME, TFD_NONBLOCK)) >= 0 && !timerfd_settime(fd[1], 0, &often, NULL));
	must((fd[2] = timerfd_create(CLOCK_REALTIME, TFD_NONBLOCK)) >= 0);
	must((fd[3] = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK)) >= 0);
	struct itimerspec once = {.it_value.tv_nsec = 1};
	must(!timerfd_settime(fd[3], 0, &once, NULL));
	struct pollfd p = {.fd = fd[3], .events = POLLIN};
	must(poll(&p, 1, 1000) == 1);
}
static void timerfd_check(void) {
	struct itimerspec t;
	uint64_t n;
	must(!timerfd_gettime(fd[0], &t) && t.it_value.tv_sec > 3300 && !t.it_interval.tv_nsec);
	struct pollfd p = {.fd = fd[1], .events = POLLIN};
	for (int i = 0; i < 3; i++)
		must(poll(&p, 1, 1000) == 1 && read(fd[1], &n, 8) == 8 && n >= 1);
	must(!timerfd_gettime(fd[1], &t) && t.it_interval.tv_nsec == 20000000);
	must(!timerfd_gettime(fd[2], &t) && !t.it_value.tv_sec && !t.it_value.tv_nsec);
	must(read(fd[3], &n, 8) == 8 && n == 1);
	must(read(fd[3], &n, 8) < 0 && errno == EAGAIN);
}

static void signalfd_set(void) {
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	sigaddset(&set, SIGRTMIN + 3);
	must(!sigprocmask(SIG_BLOCK, &set, NULL) && (fd[0] = signalfd(-1, &set, SFD_NONBLOCK)) >= 0);
	must(!raise(SIGUSR2));
}
static void signalfd_check(void) {
	struct signalfd_siginfo s;
	must(read(fd[0], &s, sizeof s) == sizeof s && s.ssi_signo == SIGUSR2 && s.ssi_pid == (uint32_t)getpid());
	must(!raise(SIGRTMIN + 3) && read(fd[0], &s, sizeof s) == sizeof s && s.ssi_signo == (uint32_t)SIGRTMIN + 3);
	must(read(fd[0], &s, sizeof s) < 0 && errno == EAGAIN);
}

static char *mapped;
static void memfd_set(void) {
	must((fd[0] = memfd_create("cache", MFD_ALLOW_SEALING)) >= 0 && !ftruncate(fd[0], 3 * 4096 + 5));
	must(pwrite(fd[0], "first", 5, 0) == 5 && pwrite(fd[0], "last!", 5, 3 * 4096) == 5);
	must(!fcntl(fd[0], F_ADD_SEALS, F_SEAL_SHRINK));
	must((mapped = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd[0], 0)) != MAP_FAILED);
	must(lseek(fd[0], 7, SEEK_SET) == 7);
}
static void memfd_check(void) {
	char got[5];
	struct stat s;
	must(!fstat(fd[0], &s) && s.st_size == 3 * 4096 + 5 && lseek(fd[0], 0, SEEK_CUR) == 7);
	must(pread(fd[0], got, 5, 3 * 4096) == 5 && !memcmp(got, "last!", 5));
	must(!memcmp(mapped, "first", 5));
	memcpy(mapped, "FIRST", 5);
	must(pread(fd[0], got, 5, 0) == 5 && !memcmp(got, "FIRST", 5));
	must(fcntl(fd[0], F_GET_SEALS) == F_SEAL_SHRINK && ftruncate(fd[0], 4) && errno == EPERM);
}

/* unix: pairs of all types with queues, a descriptor in flight, shutdown */
static void pass(int sk, int what) {
	union { char room[64]; struct cmsghdr align; } u;
	struct iovec v = {"with fd", 7};
	struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = u.room, .msg_controllen = CMSG_SPACE(sizeof(int))};
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(c), &what, sizeof(int));
	must(sendmsg(sk, &m, 0) == 7);
}
static int take(int sk) {
	union { char room[64]; struct cmsghdr align; } u;
	char data[16];
	int got;
	struct iovec v = {data, sizeof data};
	struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = u.room, .msg_controllen = sizeof u.room};
	must(recvmsg(sk, &m, 0) == 7 && !memcmp(data, "with fd", 7));
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);
	must(c && c->cmsg_type == SCM_RIGHTS);
	memcpy(&got, CMSG_DATA(c), sizeof got);
	return got;
}
static void pairs_set(void) {
	int p[2];
	must(!socketpair(AF_UNIX, SOCK_STREAM, 0, fd) && !socketpair(AF_UNIX, SOCK_SEQPACKET, 0, fd + 2));
	must(!socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0, fd + 4) && !pipe(p));
	for (int i = 0; i < 6; i += 2)
		must(send(fd[i], "one", 3, 0) == 3 && send(fd[i], "three", 5, 0) == 5);
	must(write(p[1], "in the pipe", 11) == 11);
	pass(fd[3], p[0]);
	must(!close(p[0]));
	fd[6] = p[1];
	must(!shutdown(fd[0], SHUT_WR));
	int on = 1;
	must(!setsockopt(fd[5], SOL_SOCKET, SO_PASSCRED, &on, sizeof on) || 1);
	on = 0;
	must(!setsockopt(fd[5], SOL_SOCKET, SO_PASSCRED, &on, sizeof on));
}
static void pairs_check(void) {
	must(holds(fd[1], "onethree") && holds(fd[1], ""));
	must(send(fd[0], "x", 1, MSG_NOSIGNAL) < 0 && errno == EPIPE);
	must(send(fd[1], "back", 4, 0) == 4 && holds(fd[0], "back"));
	for (int i = 3; i < 6; i += 2)
		must(holds(fd[i], "one") && holds(fd[i], "three"));
	int r = take(fd[2]);
	must(holds(r, "in the pipe") && write(fd[6], "more", 4) == 4 && holds(r, "more"));
	must(recv(fd[5], &r, 1, 0) < 0 && errno == EAGAIN);
}

/* pairs made by us, and by a child that was another user then; an orphaned end */
static int peer(int s, pid_t pid, uid_t uid, gid_t gid) {
	struct ucred c;
	socklen_t n = sizeof c;
	return !getsockopt(s, SOL_SOCKET, SO_PEERCRED, &c, &n) && c.pid == pid && c.uid == uid && c.gid == gid;
}
static pid_t stranger;
static unsigned *ids; /* that the child could take: its uid, its gid */
static void peers_set(void) {
	must(!socketpair(AF_UNIX, SOCK_DGRAM, 0, fd) && !socketpair(AF_UNIX, SOCK_STREAM, 0, fd + 2));
	ids = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	must(ids != MAP_FAILED && (stranger = fork()) >= 0);
	if (!stranger) {
		int p[2];
		ids[1] = setegid(1002) ? 0 : 1002;
		ids[0] = seteuid(1001) ? 0 : 1001;
		if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, p))
			_exit(3);
		pass(fd[2], p[0]);
		pass(fd[2], p[1]);
		if (seteuid(0) || socketpair(AF_UNIX, SOCK_STREAM, 0, p))
			_exit(3);
		pass(fd[2], p[0]);
		for (;;)
			pause();
	}
	for (int i = 0; i < 3; i++)
		must((fd[4 + i] = take(fd[3])) >= 0);
}
static void peers_check(void) {
	must(peer(fd[0], getpid(), 0, 0) && peer(fd[1], getpid(), 0, 0));
	must(peer(fd[2], getpid(), 0, 0) && peer(fd[3], getpid(), 0, 0));
	must(peer(fd[4], stranger, ids[0], ids[1]) && peer(fd[5], stranger, ids[0], ids[1]));
	must(peer(fd[6], stranger, 0, ids[1]));
	must(send(fd[4], "x", 1, 0) == 1 && holds(fd[5], "x"));
	kill(stranger, SIGKILL);
}

static void name_of(struct sockaddr_un *a, const char *name) {
	memset(a, 0, sizeof *a);
	a->sun_family = AF_UNIX;
	snprintf(a->sun_path, sizeof a->sun_path, "%s", name);
}
static void unix_set(void) {
	struct sockaddr_un a;
	socklen_t n = sizeof a;
	must(!chdir(dir));
	name_of(&a, "listen.sock");
	unlink("listen.sock");
	must((fd[0] = socket(AF_UNIX, SOCK_STREAM, 0)) >= 0 && !bind(fd[0], (void *)&a, sizeof a) && !listen(fd[0], 7));
	must(!chmod("listen.sock", 0660));
	must((fd[1] = socket(AF_UNIX, SOCK_STREAM, 0)) >= 0 && !connect(fd[1], (void *)&a, sizeof a));
	must((fd[2] = accept(fd[0], NULL, NULL)) >= 0 && send(fd[1], "hello", 5, 0) == 5);
	name_of(&a, " dunlin files probe");
	snprintf(a.sun_path + 1, 60, "dunlin-files-%d", getpid());
	a.sun_path[0] = 0;
	n = offsetof(struct sockaddr_un, sun_path) + 1 + strlen(a.sun_path + 1);
	must((fd[3] = socket(AF_UNIX, SOCK_DGRAM, 0)) >= 0 && !bind(fd[3], (void *)&a, n));
	must((fd[4] = socket(AF_UNIX, SOCK_DGRAM, 0)) >= 0 && !connect(fd[4], (void *)&a, n));
	must(send(fd[4], "one", 3, 0) == 3 && send(fd[4], "two", 3, 0) == 3);
}
static void unix_check(void) {
	struct sockaddr_un a, b;
	struct stat s;
	socklen_t n = sizeof a;
	must(holds(fd[2], "hello") && send(fd[2], "back", 4, 0) == 4 && holds(fd[1], "back"));
	must(!getpeername(fd[1], (void *)&a, &n) && !strcmp(a.sun_path, "listen.sock"));
	n = sizeof a;
	must(!getsockname(fd[2], (void *)&a, &n) && !strcmp(a.sun_path, "listen.sock"));
	must(!stat("listen.sock", &s) && S_ISSOCK(s.st_mode) && (s.st_mode & 0777) == 0660);
	name_of(&b, "listen.sock");
	must((fd[5] = socket(AF_UNIX, SOCK_STREAM, 0)) >= 0 && !connect(fd[5], (void *)&b, sizeof b));
	must((fd[6] = accept(fd[0], NULL, NULL)) >= 0 && send(fd[5], "new", 3, 0) == 3 && holds(fd[6], "new"));
	must(send(fd[4], "three", 5, 0) == 5);
	must(holds(fd[3], "one") && holds(fd[3], "two") && holds(fd[3], "three"));
}

/* internet: listeners of both families with options, UDP */
static int port_of(int sk) {
	struct sockaddr_in6 a;
	socklen_t n = sizeof a;
	must(!getsockname(sk, (void *)&a, &n));
	return ntohs(a.sin6_port); /* at the same place in both families */
}
static int ports[4];
static void internet_set(void) {
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_ANY)};
	struct sockaddr_in6 b = {.sin6_family = AF_INET6};
	int on = 1;
	must((fd[0] = socket(AF_INET, SOCK_STREAM, 0)) >= 0 && !setsockopt(fd[0], SOL_SOCKET, SO_REUSEADDR, &on, 4));
	must(!bind(fd[0], (void *)&a, sizeof a) && !listen(fd[0], 33));
	must((fd[1] = socket(AF_INET6, SOCK_STREAM | SOCK_NONBLOCK, 0)) >= 0);
	must(!setsockopt(fd[1], IPPROTO_IPV6, IPV6_V6ONLY, &on, 4));
	must(!bind(fd[1], (void *)&b, sizeof b) && !listen(fd[1], 5));
	must((fd[2] = socket(AF_INET, SOCK_DGRAM, 0)) >= 0 && !bind(fd[2], (void *)&a, sizeof a));
	must((fd[3] = socket(AF_INET, SOCK_STREAM, 0)) >= 0 && !setsockopt(fd[3], SOL_SOCKET, SO_KEEPALIVE, &on, 4));
	for (int i = 0; i < 3; i++)
		ports[i] = port_of(fd[i]);
}
static int option(int sk, int level, int name) {
	int v = -1;
	socklen_t n = sizeof v;
	must(!getsockopt(sk, level, name, &v, &n));
	return v;
}
static void internet_check(void) {
	for (int i = 0; i < 3; i++)
		must(port_of(fd[i]) == ports[i]);
	must(option(fd[0], SOL_SOCKET, SO_ACCEPTCONN) == 1 && option(fd[1], SOL_SOCKET, SO_ACCEPTCONN) == 1);
	must(option(fd[0], SOL_SOCKET, SO_REUSEADDR) == 1 && option(fd[1], SOL_SOCKET, SO_REUSEADDR) == 0);
	must(option(fd[1], IPPROTO_IPV6, IPV6_V6ONLY) == 1 && option(fd[3], SOL_SOCKET, SO_KEEPALIVE) == 1);
	must(fcntl(fd[1], F_GETFL) & O_NONBLOCK);
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(ports[0]), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	if (connect(fd[3], (void *)&a, sizeof a)) {
		int why = errno;
		must(why == ENETUNREACH); /* a network of its own, without lo */
		return;
	}
	must((fd[4] = accept(fd[0], NULL, NULL)) >= 0 && send(fd[3], "tcp", 3, 0) == 3 && holds(fd[4], "tcp"));
}

static void locks_set(void) {
	struct flock l = {.l_type = F_WRLCK, .l_start = 3, .l_len = 4};
	must((fd[0] = open(at("locked"), O_RDWR | O_CREAT, 0600)) >= 0 && !fcntl(fd[0], F_SETLK, &l));
	l.l_start = 100;
	l.l_len = 0;
	must(!fcntl(fd[0], F_OFD_SETLK, &l));
	must((fd[1] = open(at("flocked"), O_RDWR | O_CREAT, 0600)) >= 0 && !flock(fd[1], LOCK_EX));
}
static void locks_check(void) {
	int status;
	pid_t other = fork();
	must(other >= 0);
	if (!other) {
		struct flock l = {.l_type = F_WRLCK, .l_start = 0, .l_len = 50};
		int f = open(at("locked"), O_RDWR), g = open(at("flocked"), O_RDWR);
		if (fcntl(f, F_GETLK, &l) || l.l_type != F_WRLCK || l.l_start != 3 || l.l_len != 4 || l.l_pid != getppid())
			_exit(1);
		struct flock m = {.l_type = F_RDLCK, .l_start = 1000, .l_len = 1};
		if (fcntl(f, F_GETLK, &m) || m.l_type != F_WRLCK || m.l_start != 100 || m.l_pid != -1)
			_exit(2);
		_exit(flock(g, LOCK_SH | LOCK_NB) == 0 ? 3 : 0);
	}
	must(waitpid(other, &status, 0) == other && WIFEXITED(status));
	must(WEXITSTATUS(status) == 0);
}

/* owner: a signal when a pipe gets data */
static volatile sig_atomic_t signalled;
static void on_io(int s, siginfo_t *info, void *context) {
	(void)s;
	(void)context;
	signalled = info->si_fd == fd[0] ? 1 : 2;
}
static void owner_set(void) {
	struct sigaction a = {.sa_sigaction = on_io, .sa_flags = SA_SIGINFO};
	must(!sigaction(SIGRTMIN, &a, NULL) && !socketpair(AF_UNIX, SOCK_STREAM, 0, fd));
	must(!fcntl(fd[0], F_SETOWN, getpid()) && !fcntl(fd[0], F_SETSIG, SIGRTMIN));
	must(!fcntl(fd[0], F_SETFL, O_ASYNC | O_NONBLOCK | O_RDWR));
}
static void owner_check(void) {
	must(fcntl(fd[0], F_GETOWN) == getpid() && fcntl(fd[0], F_GETSIG) == SIGRTMIN);
	must(send(fd[1], "x", 1, 0) == 1);
	must(signalled == 1);
}

/* shared: an epoll set, a file and an eventfd that a child has too */
static void shared_set(void) {
	must((fd[0] = eventfd(0, 0)) >= 0 && (fd[1] = epoll_create1(0)) >= 0 && !pipe(fd + 2));
	must((fd[4] = open(at("shared"), O_RDWR | O_CREAT | O_TRUNC, 0600)) >= 0);
	add(fd[1], fd[0], EPOLLIN, 9);
	must((child = fork()) >= 0);
	if (!child) {
		struct epoll_event e;
		close(fd[3]);
		char c;
		while (read(fd[2], &c, 1) == 1) {
			if (write(fd[4], "child", 5) != 5 || eventfd_write(fd[0], 5))
				_exit(1);
			if (epoll_wait(fd[1], &e, 1, 1000) != 1 || e.data.u64 != 9)
				_exit(2);
		}
		_exit(0);
	}
	close(fd[2]);
}
static void shared_check(void) {
	struct epoll_event e;
	eventfd_t n;
	int status;
	must(write(fd[3], "x", 1) == 1);
	must(epoll_wait(fd[1], &e, 1, 5000) == 1 && e.data.u64 == 9);
	must(!eventfd_read(fd[0], &n) && n == 5);
	must(lseek(fd[4], 0, SEEK_CUR) == 5);
	eventfd_write(fd[0], 1); /* the child may still have to see it */
	must(!close(fd[3]) && waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* semaphore: a named one, mapped from the /dev/shm of all of us by a name that it no
 * longer has: two processes take turns, and a third finds it by its name */
static sem_t *turn[2];
static char names[2][64];
static void semaphore_set(void) {
	for (int i = 0; i < 2; i++) {
		snprintf(names[i], sizeof names[i], "/turn-%d-%d", getpid(), i);
		must((turn[i] = sem_open(names[i], O_CREAT | O_EXCL, 0600, 0)) != SEM_FAILED);
	}
	must((child = fork()) >= 0);
	if (!child)
		while (!sem_wait(turn[0]))
			sem_post(turn[1]);
}
static void semaphore_check(void) {
	struct timespec end;
	for (int i = 0; i < 100; i++) {
		must(!clock_gettime(CLOCK_REALTIME, &end));
		end.tv_sec += 20;
		must(!sem_post(turn[0]) && !sem_timedwait(turn[1], &end));
	}
	sem_t *found;
	int n;
	must(!sem_post(turn[1]) && (found = sem_open(names[1], 0)) != SEM_FAILED);
	must(!sem_getvalue(found, &n) && n == 1 && !sem_unlink(names[0]) && !sem_unlink(names[1]));
	must(!kill(child, SIGKILL) && waitpid(child, NULL, 0) == child);
}

/* output: a line on the standard output before and after */
static void output_set(void) {
	must(write(1, "before\n", 7) == 7);
}
static void output_check(void) {
	must(write(1, "after\n", 6) == 6);
}

static const struct {
	const char *name;
	void (*set)(void), (*check)(void);
} kinds[] = {
#define KIND(k) {#k, k##_set, k##_check}
	KIND(regular), KIND(ghost), KIND(pipe), KIND(fifo), KIND(eventfd), KIND(counter), KIND(epoll), KIND(timerfd), KIND(signalfd),
	KIND(memfd), KIND(pairs), KIND(peers), KIND(unix), KIND(internet), KIND(locks), KIND(owner), KIND(shared),
	KIND(semaphore), KIND(output),
};

int main(int argc, char **argv) {
	sigset_t ask;
	static char where[4096];
	if (argc != 3)
		return 2;
	verdict = argv[2];
	snprintf(where, sizeof where, "%s", verdict);
	*strrchr(where, '/') = 0;
	dir = where;
	sigemptyset(&ask);
	sigaddset(&ask, SIGUSR1);
	sigprocmask(SIG_BLOCK, &ask, NULL);
	for (unsigned i = 0; i < sizeof kinds / sizeof *kinds; i++) {
		if (strcmp(kinds[i].name, argv[1]))
			continue;
		int s;
		kinds[i].set();
		say("ready\n");
		sigwait(&ask, &s);
		kinds[i].check();
		say("ok\n");
		return 0;
	}
	return 2;
}
