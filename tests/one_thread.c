/* one_thread.c - preloaded into a test program that is said to have one thread: a second one ends it. What never has
 * two need not run under the thread sanitizer, and this is how its tag stays true. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

__attribute__((visibility("default"))) int pthread_create(pthread_t *restrict thread,
                                                          const pthread_attr_t *restrict attr, void *(*start)(void *),
                                                          void *restrict arg)
{
    (void)thread, (void)attr, (void)start, (void)arg;
    fputs("a thread in a test of the suite one-thread, which TSan does not see\n", stderr);
    abort();
}
