/* Memory shared by a parent and its child, disturbed while it may be missing.
 *
 * shared [MiB [plain]]
 *                fills MiB (default 16) of shared anonymous memory, and a quarter
 *                of that from /dev/zero, whose tail nobody maps (unless "plain");
 *                a child sees the first at another address; "ready"
 * SIGUSR1        each throws parts away (madvise DONTNEED and REMOVE), forks,
 *                moves, unmaps, grows, writes; parent and child check everything;
 *                "turn K" when all is right and as it was before
 * What is wrong  "wrong WHO WHAT", exit code 1
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096, WORDS = PAGE / 8, RW = PROT_READ | PROT_WRITE, HOLE = 64 };

static const char *me = "parent";
static size_t pages, quarter;
static uint64_t turn;   /* pages 0 and 1 are written in each */
static int hole;        /* HOLE pages behind the first quarter are zero */

static void wrong(const char *what, size_t page, uint64_t is) {
	printf("wrong %s %s: page %zu holds %lx\n", me, what, page, (unsigned long)is);
	fflush(stdout);
	_exit(1);
}

static uint64_t mix(uint64_t x) {
	x ^= x >> 33;
	x *= 0xff51afd7ed558ccdULL;
	return x ^ (x >> 33);
}

static uint64_t want(size_t page, size_t word, uint64_t written) {
	if (hole && page >= quarter && page < quarter + HOLE)
		return 0;
	return mix(page * WORDS + word + 1) + (page < 2 ? written : 0);
}

/* `at` shows the pages from `first` on. */
static void check(const uint64_t *at, size_t first, size_t n, const char *what) {
	for (size_t i = 0; i < n * WORDS; i++)
		if (at[i] != want(first + i / WORDS, i % WORDS, turn))
			wrong(what, first + i / WORDS, at[i]);
}

static void write_page(uint64_t *at, size_t page) {
	for (size_t word = 0; word < WORDS; word++)
		at[word] = want(page, word, turn);
}

static void *must(void *at, const char *what) {
	if (at == MAP_FAILED) {
		perror(what);
		_exit(2);
	}
	return at;
}

static uint64_t *map(size_t n, int flags) {
	return must(mmap(NULL, n * PAGE, RW, flags | MAP_ANONYMOUS, -1, 0), "mmap");
}

/* Moves pages to a place of their own. */
static uint64_t *move(uint64_t *from, size_t n) {
	void *to = map(n, MAP_PRIVATE | MAP_NORESERVE);
	int flags = MREMAP_MAYMOVE | MREMAP_FIXED;
	return must(mremap(from, n * PAGE, n * PAGE, flags, to), "mremap");
}

static void grow(uint64_t *at, size_t n, size_t to) {
	must(mremap(at, n * PAGE, to * PAGE, 0), "grow");
}

static uint64_t *page(uint64_t *at, size_t n) {
	return at + n * WORDS;
}

/* The child: does what it is told by a letter, and says that it is done. */
static void child(uint64_t *a, int ask, int done) {
	char what;
	me = "child";
	a = move(a, pages);
	if (write(done, "r", 1) != 1)
		_exit(1);
	while (read(ask, &what, 1) == 1) {
		switch (what) {
		case 'h':
			hole = 1;
			check(page(a, quarter), quarter, HOLE + 1, "hole");
			break;
		case 'f':
			hole = 0;
			break;
		case 'u':
			check(page(a, 2 * quarter), 2 * quarter, quarter, "what its parent unmapped");
			break;
		case 'w':
			turn++;
			check(a, 0, 1, "what its parent wrote");
			write_page(page(a, 1), 1);
			break;
		default:
			check(a, 0, pages, "all");
		}
		if (write(done, "r", 1) != 1)
			_exit(1);
	}
	_exit(0);
}

static int ask_fd, done_fd;

static void ask(char what) {
	char r;
	if (write(ask_fd, &what, 1) != 1 || read(done_fd, &r, 1) != 1)
		_exit(1);
}

static void disturb(uint64_t *a, uint64_t *b, int tail, uint64_t *hidden) {
	int status;
	madvise(a, quarter * PAGE, MADV_DONTNEED);
	check(a, 0, quarter, "after MADV_DONTNEED");
	madvise(page(a, quarter), HOLE * PAGE, MADV_REMOVE);
	hole = 1;
	check(page(a, quarter), quarter, HOLE + 1, "after MADV_REMOVE");
	ask('h');
	pid_t grandchild = fork();
	if (grandchild == 0) {
		me = "late child";
		check(page(a, quarter), quarter, HOLE, "hole");
		check(page(a, 3 * quarter), 3 * quarter, quarter, "at its fork");
		_exit(0);
	}
	uint64_t *moved = move(page(a, 3 * quarter), quarter);
	check(moved, 3 * quarter, quarter, "moved");
	munmap(page(a, 2 * quarter), quarter * PAGE);
	ask('u');
	turn++;
	write_page(a, 0);
	ask('w');
	check(page(a, 1), 1, 1, "what its child wrote");
	/* Both come back by growth. */
	grow(a, 2 * quarter, 4 * quarter);
	check(page(a, 3 * quarter), 3 * quarter, quarter, "grown");
	munmap(moved, quarter * PAGE);
	if (tail)
		grow(b, quarter / 2, quarter);
	check(page(b, quarter / 2), pages + quarter / 2, quarter / 2, "tail");
	mprotect(hidden, PAGE, PROT_READ);
	check(hidden, 2 * pages, 1, "below PROT_NONE");
	waitpid(grandchild, &status, 0);
	if (status != 0)
		wrong("child", 0, status);
	check(a, 0, pages, "all");
	check(b, pages, quarter, "all");
	ask('a');
	/* As it was. */
	hole = 0;
	for (size_t i = quarter; i < quarter + HOLE; i++)
		write_page(page(a, i), i);
	if (tail)
		munmap(page(b, quarter / 2), quarter / 2 * PAGE);
	mprotect(hidden, PAGE, PROT_NONE);
	ask('f');
	ask('a');
}

int main(int argc, char **argv) {
	int to[2], from[2], tail = argc < 3 || strcmp(argv[2], "plain") != 0;
	siginfo_t info;
	sigset_t usr1;
	pages = (argc > 1 ? strtoul(argv[1], NULL, 10) : 16) * 256;
	quarter = pages / 4;
	setsid();
	uint64_t *a = map(pages, MAP_SHARED);
	int zero = open("/dev/zero", O_RDWR);
	uint64_t *b = must(mmap(NULL, quarter * PAGE, RW, MAP_SHARED, zero, 0), "/dev/zero");
	close(zero);
	uint64_t *hidden = map(1, MAP_SHARED);
	for (size_t i = 0; i < pages; i++)
		write_page(page(a, i), i);
	for (size_t i = 0; i < quarter; i++)
		write_page(page(b, i), pages + i);
	write_page(hidden, 2 * pages);
	sigemptyset(&usr1);
	sigaddset(&usr1, SIGUSR1);
	sigprocmask(SIG_BLOCK, &usr1, NULL);
	if (pipe(to) || pipe(from))
		return 2;
	pid_t pid = fork();
	if (pid == 0) {
		close(to[1]);
		munmap(b, quarter * PAGE);
		munmap(hidden, PAGE);
		child(a, to[0], from[1]);
	}
	close(to[0]);
	close(from[1]);
	ask_fd = to[1];
	done_fd = from[0];
	char r;
	if (pid < 0 || read(done_fd, &r, 1) != 1)
		return 2;
	if (tail)
		munmap(page(b, quarter / 2), quarter / 2 * PAGE);
	mprotect(hidden, PAGE, PROT_NONE);
	printf("ready\n");
	fflush(stdout);
	for (;;) {
		if (sigwaitinfo(&usr1, &info) < 0)
			continue;
		disturb(a, b, tail, hidden);
		printf("turn %lu\n", (unsigned long)turn);
		fflush(stdout);
	}
}
