/* Preloaded into a server: moves its clock, and delays fsync. Built and controlled by shim.py.
 *
 * The control file is two numbers of nanoseconds, mapped into every process: what to add to the time of day, and how
 * long fsync takes. The monotonic clock is left alone. libev asks for the time by syscall(), so that is wrapped, too.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t *control; /* NULL until the library is loaded */

static long (*real_syscall)(long, ...);
static int (*real_fsync)(int);
static int (*real_fdatasync)(int);
static int (*real_syncfs)(int);

__attribute__((constructor)) static void begin(void) {
    real_syscall = dlsym(RTLD_NEXT, "syscall");
    real_fsync = dlsym(RTLD_NEXT, "fsync");
    real_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
    real_syncfs = dlsym(RTLD_NEXT, "syncfs");
    const char *path = getenv("FAULTS_CONTROL");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return;
    void *mapped = mmap(NULL, 16, PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (mapped != MAP_FAILED) control = mapped;
}

static void shift(struct timespec *time) {
    if (!control) return;
    int64_t total = (int64_t)time->tv_sec * 1000000000 + time->tv_nsec + control[0];
    time->tv_sec = total / 1000000000;
    time->tv_nsec = total % 1000000000;
}

static int is_time_of_day(clockid_t clock) {
    return clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE;
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, time);
    if (result == 0 && is_time_of_day(clock)) shift(time);
    return result;
}

int gettimeofday(struct timeval *restrict time, void *restrict zone) {
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    time->tv_sec = now.tv_sec;
    time->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *result) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (result) *result = now.tv_sec;
    return now.tv_sec;
}

long syscall(long number, ...) {
    long a[6];
    va_list arguments;
    va_start(arguments, number);
    for (int i = 0; i < 6; i++) a[i] = va_arg(arguments, long);
    va_end(arguments);
    if (!real_syscall) real_syscall = dlsym(RTLD_NEXT, "syscall");
    long result = real_syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
    if (number == SYS_clock_gettime && result == 0 && is_time_of_day((clockid_t)a[0])) shift((struct timespec *)a[1]);
    return result;
}

static void delay(void) {
    /* In pieces, so that a long delay ends when the control file says so. */
    for (int64_t waited = 0; control && waited < control[1]; waited += 10000000) {
        struct timespec piece = {0, 10000000};
        nanosleep(&piece, NULL);
    }
}

int fsync(int file) {
    delay();
    return real_fsync(file);
}

int fdatasync(int file) {
    delay();
    return real_fdatasync(file);
}

int syncfs(int file) {
    delay();
    return real_syncfs(file);
}
