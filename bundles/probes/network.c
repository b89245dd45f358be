/* A program in a network namespace with nothing but lo: listens there, and tells when
 * asked whether all is as it was.
 *
 *   unshare -n network FACET     FACET is up, down, was-up or settings
 *
 * Prints "ready"; after SIGUSR1 "right", or "wrong" and both reports.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static const char *const settings[] = {
	"ipv4/conf/all/forwarding", "ipv4/conf/default/rp_filter", "ipv4/conf/lo/accept_redirects",
	"ipv4/conf/lo/arp_ignore", "ipv4/ping_group_range", "ipv6/conf/default/disable_ipv6",
	"ipv6/conf/all/hop_limit", "ipv6/conf/lo/hop_limit", "ipv6/conf/lo/mtu", "unix/max_dgram_qlen",
};

static int lo_flags(int set, int clear)
{
	struct ifreq lo = { .ifr_name = "lo" };
	int s = socket(AF_INET, SOCK_DGRAM, 0);

	ioctl(s, SIOCGIFFLAGS, &lo);
	if (set || clear) {
		lo.ifr_flags = (lo.ifr_flags | set) & ~clear;
		if (ioctl(s, SIOCSIFFLAGS, &lo))
			perror("wrong: set the flags of lo");
	}
	close(s);
	return lo.ifr_flags;
}

static int lo_mtu(int set)
{
	struct ifreq lo = { .ifr_name = "lo", .ifr_mtu = set };
	int s = socket(AF_INET, SOCK_DGRAM, 0);

	if (ioctl(s, set ? SIOCSIFMTU : SIOCGIFMTU, &lo))
		perror("wrong: mtu of lo");
	close(s);
	return lo.ifr_mtu;
}

static void setting(const char *name, char *text, size_t room, const char *value)
{
	char path[100];
	int fd;

	snprintf(path, sizeof path, "/proc/sys/net/%s", name);
	fd = open(path, value ? O_WRONLY : O_RDONLY);
	if (value && write(fd, value, strlen(value)) < 0)
		perror("wrong: write a setting");
	if (!value) {
		ssize_t n = read(fd, text, room - 1);
		text[n < 0 ? 0 : n] = 0;
	}
	close(fd);
}

static char *report(void)
{
	static char text[8192];
	struct ifaddrs *all, *a;
	char one[200];
	size_t i;

	sprintf(text, "flags %x mtu %d\n", lo_flags(0, 0), lo_mtu(0));
	getifaddrs(&all);
	for (a = all; a; a = a->ifa_next) {
		char at[INET6_ADDRSTRLEN] = "";
		int family = a->ifa_addr ? a->ifa_addr->sa_family : 0;

		if (family == AF_INET)
			inet_ntop(family, &((struct sockaddr_in *)a->ifa_addr)->sin_addr, at, sizeof at);
		if (family == AF_INET6)
			inet_ntop(family, &((struct sockaddr_in6 *)a->ifa_addr)->sin6_addr, at, sizeof at);
		sprintf(text + strlen(text), "%s %d %s\n", a->ifa_name, family, at);
	}
	freeifaddrs(all);
	for (i = 0; i < sizeof settings / sizeof *settings; i++) {
		setting(settings[i], one, sizeof one, NULL);
		sprintf(text + strlen(text), "%s %s", settings[i], one);
	}
	return text;
}

/* Whether a listening socket answers to one that connects. */
static void answers(int listening, int family, const void *address, socklen_t len)
{
	int c = socket(family, SOCK_STREAM, 0), s;
	char word[3] = "";

	if (connect(c, address, len))
		perror("wrong: connect");
	s = accept(listening, NULL, NULL);
	write(s, "hi", 2);
	read(c, word, 2);
	if (strcmp(word, "hi"))
		printf("wrong: an answer\n");
	close(c);
	close(s);
}

int main(int argc, char **argv)
{
	const char *facet = argc > 1 ? argv[1] : "up";
	struct sockaddr_in four = { AF_INET, htons(7777), { htonl(INADDR_LOOPBACK) } };
	struct sockaddr_in6 six = { AF_INET6, htons(7777), 0, IN6ADDR_LOOPBACK_INIT };
	struct sockaddr_un name = { AF_UNIX, "\0network" };
	socklen_t name_len = offsetof(struct sockaddr_un, sun_path) + 8;
	int up = strcmp(facet, "down") && strcmp(facet, "was-up");
	int on_four = socket(AF_INET, SOCK_STREAM, 0), on_six = socket(AF_INET6, SOCK_STREAM, 0);
	int on_name = socket(AF_UNIX, SOCK_STREAM, 0);
	char *before, *now;
	sigset_t asked;

	sigemptyset(&asked);
	sigaddset(&asked, SIGUSR1);
	sigprocmask(SIG_BLOCK, &asked, NULL);
	if (!strcmp(facet, "settings")) {
		setting("ipv4/conf/all/forwarding", NULL, 0, "1");
		setting("ipv4/conf/default/rp_filter", NULL, 0, "2");
		setting("ipv4/conf/lo/arp_ignore", NULL, 0, "1");
		setting("ipv4/conf/lo/accept_redirects", NULL, 0, "1");
		setting("ipv4/ping_group_range", NULL, 0, "0 17");
		setting("ipv6/conf/default/disable_ipv6", NULL, 0, "1");
		setting("ipv6/conf/lo/hop_limit", NULL, 0, "33");
		setting("unix/max_dgram_qlen", NULL, 0, "77");
		lo_mtu(1500);
	}
	if (strcmp(facet, "down"))
		lo_flags(IFF_UP, 0);
	if (!up)
		lo_flags(0, IFF_UP);
	if (up) {
		if (bind(on_four, (void *)&four, sizeof four) || bind(on_six, (void *)&six, sizeof six))
			perror("wrong: bind");
		listen(on_four, 5);
		listen(on_six, 5);
	}
	bind(on_name, (void *)&name, name_len);
	listen(on_name, 5);
	before = strdup(report());
	printf("ready\n");
	fflush(stdout);
	for (;;) {
		while (sigwaitinfo(&asked, NULL) != SIGUSR1)
			;
		now = report();
		if (strcmp(before, now))
			printf("wrong: was\n%s\nis\n%s", before, now);
		if (up) {
			answers(on_four, AF_INET, &four, sizeof four);
			answers(on_six, AF_INET6, &six, sizeof six);
		}
		answers(on_name, AF_UNIX, &name, name_len);
		printf("right\n");
		fflush(stdout);
	}
}
