/* One task that only computes: a counter in memory, a line when it is asked.
 *
 * spin [MiB]     fills MiB of private memory (default 0), then
 *                "ready MiB"
 * SIGUSR1        "count N": N is larger each time; before it speaks, all of
 *                the memory is compared with what was written to it
 * A wrong page   "wrong ADDRESS", exit code 1
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

static volatile sig_atomic_t asked;

static void ask(int signal) {
	(void)signal;
	asked = 1;
}

static uint64_t mix(uint64_t x) {
	x ^= x >> 33;
	x *= 0xff51afd7ed558ccdULL;
	x ^= x >> 33;
	return x;
}

int main(int argc, char **argv) {
	size_t mib = argc > 1 ? strtoul(argv[1], NULL, 10) : 0;
	size_t words = mib << 17;
	uint64_t *memory = NULL;
	struct sigaction action = {.sa_handler = ask};

	setvbuf(stdout, NULL, _IOLBF, 0);
	sigaction(SIGUSR1, &action, NULL);
	if (words) {
		memory = mmap(NULL, words * 8, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (memory == MAP_FAILED) {
			perror("mmap");
			return 2;
		}
		for (size_t i = 0; i < words; i++)
			memory[i] = mix((uintptr_t)&memory[i]);
	}
	printf("ready %zu\n", mib);
	for (volatile uint64_t count = 0;; count++) {
		if (!asked)
			continue;
		asked = 0;
		for (size_t i = 0; i < words; i++) {
			if (memory[i] != mix((uintptr_t)&memory[i])) {
				printf("wrong %p\n", (void *)&memory[i]);
				return 1;
			}
		}
		printf("count %llu\n", (unsigned long long)count);
	}
}
