/* Areas of memory that come and go all the time, beside much memory that stays.
 *
 * churn MIB      fills MIB MiB, starts to map and unmap, then "ready"
 * SIGUSR1        stops that, and compares all areas with what they were made as:
 *                place, protection, advice, content; then "turn K", and goes on
 * What is wrong  "wrong WHAT", exit code 1
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { P = 4096, SLOTS = 48 };

static const struct {
	int advice;
	const char *word;
} advices[] = {
	{MADV_DONTFORK, "dc"}, {MADV_DONTDUMP, "dd"}, {MADV_NOHUGEPAGE, "nh"}, {MADV_WIPEONFORK, "wf"},
};
enum { ADVICES = sizeof advices / sizeof *advices };

static struct slot {
	unsigned char *at;
	size_t len;
	int prot, flags, advice; /* advice: index, or -1 */
} slots[SLOTS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void wrong(const char *what, long which) {
	printf("wrong %s %ld\n", what, which);
	exit(1);
}

static void turn_over(struct slot *s) {
	static unsigned seed = 1;
	unsigned r = rand_r(&seed);

	if (s->at && munmap(s->at, s->len))
		wrong("munmap", s - slots);
	memset(s, 0, sizeof *s);
	if (r % 3 == 0)
		return;
	s->len = (r / 3 % 16 + 1) * P;
	s->flags = r / 64 % 4 ? 0 : MAP_NORESERVE;
	s->advice = r / 256 % 3 ? -1 : (int)(r / 1024 % ADVICES);
	s->at = mmap(NULL, s->len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | s->flags, -1, 0);
	if (s->at == MAP_FAILED)
		wrong("mmap", s - slots);
	memset(s->at, (int)(s - slots + 1), P);
	s->prot = PROT_READ | PROT_WRITE;
	if (r / 4096 % 4 == 0)
		s->prot = r / 16384 % 2 ? PROT_READ : PROT_NONE;
	if (mprotect(s->at, s->len, s->prot))
		wrong("mprotect", s - slots);
	if (s->advice >= 0 && madvise(s->at, s->len, advices[s->advice].advice))
		wrong("madvise", s - slots);
}

static void *work(void *unused) {
	struct timespec moment = {0, 10000};

	for (long i = 0;; i++) {
		pthread_mutex_lock(&lock);
		turn_over(&slots[i * 7 % SLOTS]);
		pthread_mutex_unlock(&lock);
		nanosleep(&moment, NULL);
	}
	return unused;
}

static void compare(void) {
	static char all[1 << 20];
	FILE *f = fopen("/proc/self/smaps", "r");
	size_t len = fread(all, 1, sizeof all - 1, f);
	long found = 0, wanted = 0;
	char *save, *line;
	unsigned long start = 0, end = 0;
	char perms[8];

	fclose(f);
	all[len] = 0;
	for (line = strtok_r(all, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		unsigned long a, b;
		char p[8];

		if (sscanf(line, "%lx-%lx %7s", &a, &b, p) == 3) {
			start = a;
			end = b;
			strcpy(perms, p);
		}
		if (strncmp(line, "VmFlags:", 8))
			continue;
		for (struct slot *s = slots; s < slots + SLOTS; s++) {
			unsigned long at = (unsigned long)s->at;

			/* Areas that are alike are one. */
			if (!at || at < start || at + s->len > end)
				continue;
			found++;
			if ((perms[0] == 'r') != !!(s->prot & PROT_READ) || (perms[1] == 'w') != !!(s->prot & PROT_WRITE))
				wrong("protection of", s - slots);
			if (!!strstr(line, " nr") != !!s->flags)
				wrong("reserve of", s - slots);
			for (int i = 0; i < ADVICES; i++) {
				char word[8];

				snprintf(word, sizeof word, " %s ", advices[i].word);
				if (!!strstr(line, word) != (s->advice == i))
					wrong(word, s - slots);
			}
		}
	}
	for (struct slot *s = slots; s < slots + SLOTS; s++) {
		if (!s->at)
			continue;
		wanted++;
		if (s->prot != PROT_NONE && (s->at[0] != s - slots + 1 || s->at[P - 1] != s - slots + 1))
			wrong("content of", s - slots);
		if (s->prot != PROT_NONE && s->len > P && s->at[P])
			wrong("zeros of", s - slots);
	}
	if (found != wanted)
		wrong("areas", found);
}

int main(int argc, char **argv) {
	size_t mib = argc > 1 ? strtoul(argv[1], NULL, 10) : 16;
	unsigned char *much;
	sigset_t usr1;
	pthread_t worker;

	setvbuf(stdout, NULL, _IOLBF, 0);
	sigemptyset(&usr1);
	sigaddset(&usr1, SIGUSR1);
	sigprocmask(SIG_BLOCK, &usr1, NULL);
	much = mmap(NULL, mib << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (much == MAP_FAILED || madvise(much, mib << 20, MADV_NOHUGEPAGE))
		wrong("mmap", 0);
	memset(much, 5, mib << 20);
	pthread_create(&worker, NULL, work, NULL);
	puts("ready");
	for (int turn = 1;; turn++) {
		int sig;

		sigwait(&usr1, &sig);
		pthread_mutex_lock(&lock);
		compare();
		for (size_t i = 0; i < mib << 20; i += P)
			if (much[i] != 5)
				wrong("page", (long)(i / P));
		printf("turn %d\n", turn);
		pthread_mutex_unlock(&lock);
	}
}
