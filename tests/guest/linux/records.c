/* Writes numbered, checksummed records to a file or a disk, ten a second, each on the medium before the next; or
 * reads them back. For Linux guests: linked statically.
 *
 *   records write|verify LABEL FILE BYTES SEED
 *
 * A writer prints "LABEL at=N pid=P ms=T" every ten records, with its process number and the monotonic clock. It goes
 * on until SIGTERM, then it prints "LABEL written=N". All records come from the same buffer, past the page cache: a request that was carried out a second time would bring
 * the contents of a later record, and to a file, which is only appended to, one record too many. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

void pattern_fill(unsigned *words, unsigned count, unsigned seed, unsigned number);
const char *pattern_check(const unsigned *words, unsigned count, unsigned seed, unsigned number);

/* Records that are read at once. */
enum { BATCH = 32 };

static const char *label;
static unsigned *buffer, bytes, seed;
static volatile sig_atomic_t told_to_end;

static void on_signal(int signal)
{
    (void)signal;
    told_to_end = 1;
}

__attribute__((noreturn)) static void fail(const char *what, unsigned number, const char *why)
{
    printf("FAIL %s: %s record %u: %s\n", label, what, number, why);
    exit(1);
}

static long long now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000LL + now.tv_nsec / 1000;
}

static void write_records(int fd)
{
    long long busy = 0, slowest = 0, next = now_us();
    unsigned number = 0;
    while (!told_to_end) {
        pattern_fill(buffer, bytes / 4, seed, number);
        long long begin = now_us();
        /* Both go on where the record before ended; a file is also opened for appending. */
        ssize_t done = write(fd, buffer, bytes);
        if (done != (ssize_t)bytes)
            fail("write", number, done < 0 ? strerror(errno) : "only part of it");
        if (fdatasync(fd))
            fail("sync", number, strerror(errno));
        long long end = now_us();
        busy += end - begin;
        if (end - begin > slowest)
            slowest = end - begin;
        if (++number % 10 == 0)
            printf("%s at=%u pid=%d ms=%lld\n", label, number, getpid(), end / 1000);
        next = next + 100000 > end ? next + 100000 : end;
        while (now_us() < next && !told_to_end)
            usleep(next - now_us() > 0 ? next - now_us() : 0);
    }
    printf("%s written=%u busy-ms=%lld slowest-ms=%lld\n", label, number, busy / 1000, slowest / 1000);
}

static void verify_records(int fd)
{
    for (unsigned number = 0;;) {
        ssize_t done = read(fd, buffer, BATCH * bytes);
        if (done < 0)
            fail("read", number, strerror(errno));
        for (unsigned i = 0; i < BATCH; i++, number++) {
            const unsigned *record = buffer + i * bytes / 4;
            /* A disk goes on with zeros, a file ends. */
            if ((i + 1) * bytes > (size_t)done || !record[0]) {
                printf("%s verified=%u\n", label, number);
                return;
            }
            const char *wrong = pattern_check(record, bytes / 4, seed, number);
            if (wrong)
                fail("verify", number, wrong);
        }
    }
}

int main(int count, char **arguments)
{
    if (count != 6)
        return 2;
    int writes = !strcmp(arguments[1], "write");
    label = arguments[2];
    bytes = atoi(arguments[4]);
    seed = atoi(arguments[5]);
    setlinebuf(stdout);
    if (posix_memalign((void **)&buffer, 4096, BATCH * bytes))
        return 2;
    struct stat stat_of;
    int is_disk = !stat(arguments[3], &stat_of) && S_ISBLK(stat_of.st_mode);
    int flags = !writes ? O_RDONLY : is_disk ? O_WRONLY : O_WRONLY | O_CREAT | O_APPEND;
    int fd = open(arguments[3], flags, 0644);
    /* Set afterwards, O_DIRECT concerns this kernel alone; what the host has the file on may not know it. */
    if (fd < 0 || fcntl(fd, F_SETFL, flags | O_DIRECT))
        fail("open", 0, strerror(errno));
    if (writes) {
        /* No SA_RESTART is needed: disk requests are not interrupted, and the sleep is to be. */
        struct sigaction action = {.sa_handler = on_signal};
        sigaction(SIGTERM, &action, NULL);
        write_records(fd);
    } else {
        verify_records(fd);
    }
    return 0;
}
