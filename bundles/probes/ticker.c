/* One task that notices when it did not run.
 *
 * ticker MiB FILE   fills MiB of private memory, then "ready MiB"; looks at the
 *                   clock every 0.2 ms, and touches a page each time
 * FILE              gets "BEFORE GAP" (real time and microseconds) for every
 *                   time that it did not run for more than 2 ms
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static int64_t now(void) {
	struct timespec t;
	clock_gettime(CLOCK_REALTIME, &t);
	return t.tv_sec * 1000000LL + t.tv_nsec / 1000;
}

int main(int argc, char **argv) {
	size_t mib = argc > 1 ? strtoul(argv[1], NULL, 10) : 0;
	size_t pages = mib * 256;
	const struct timespec pause = {0, 200000};
	char *memory, line[64];
	int file;

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (argc < 3 || !pages)
		return 2;
	file = open(argv[2], O_CREAT | O_APPEND | O_WRONLY, 0644);
	memory = mmap(NULL, pages * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (file < 0 || memory == MAP_FAILED)
		return 2;
	for (size_t i = 0; i < pages; i++)
		memset(memory + i * 4096, (int)(i % 251) + 1, 4096);
	printf("ready %zu\n", mib);
	int64_t last = now();
	for (size_t turn = 0;; turn++) {
		nanosleep(&pause, NULL);
		int64_t time = now();
		if (time - last > 2000) {
			int n = snprintf(line, sizeof line, "%lld %lld\n", (long long)last, (long long)(time - last));
			if (write(file, line, (size_t)n) != n)
				return 3;
		}
		size_t page = turn * 7919 % pages;
		if (memory[page * 4096] != (char)((page % 251) + 1)) {
			printf("wrong page %zu\n", page);
			return 1;
		}
		last = now();
	}
}
