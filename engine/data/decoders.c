/* decoders.c - a ring of decoding jobs. See decoders.h. */
#include "decoders.h"
#include "store.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { RING = 64, THREADS_MAX = 64, THREADS_DEFAULT = 2 };
static const size_t flight_max = (size_t)256 << 20; /* bytes: files, and what decoding them takes */

struct job {
    dn_decoded result;
    uint8_t *data;
    size_t len, cost;
    bool done;
};

/* Jobs are numbered; job i is in ring[i % RING]. first <= begun <= end. */
struct dn_decoders {
    struct job ring[RING];
    int64_t first, begun, end;
    size_t flight; /* the submitter's */
    bool stop;
    pthread_mutex_t lock;
    pthread_cond_t work, done;
    int n_threads;
    pthread_t thread[THREADS_MAX];
};

static void decode(struct job *j)
{
    dn_decoded *r = &j->result;
    r->rc = dn_picture_decode(&r->picture, j->data, j->len, &r->error);
    size_t bytes = (size_t)r->picture.height * (size_t)r->picture.width * (size_t)r->picture.channels;
    if (r->rc == 0 && dn_store_digest(r->digest, r->picture.pixels, bytes) != 0) {
        free(r->picture.pixels);
        r->picture.pixels = NULL;
        r->rc = dn_fail(&r->error, DN_E_MEMORY, NULL, "cannot hash it");
    }
    free(j->data);
    j->data = NULL;
}

static void *work(void *arg)
{
    dn_decoders *d = arg;
    pthread_mutex_lock(&d->lock);
    while (!d->stop) {
        if (d->begun == d->end) {
            pthread_cond_wait(&d->work, &d->lock);
            continue;
        }
        struct job *j = &d->ring[d->begun++ % RING];
        pthread_mutex_unlock(&d->lock);
        decode(j);
        pthread_mutex_lock(&d->lock);
        j->done = true;
        pthread_cond_signal(&d->done);
    }
    pthread_mutex_unlock(&d->lock);
    return NULL;
}

int dn_decoders_new(dn_decoders **out, int threads, dn_error *err)
{
    dn_decoders *d = calloc(1, sizeof *d);
    if (!d)
        return dn_fail(err, DN_E_MEMORY, NULL, "no memory to import");
    int n = threads < 1 ? THREADS_DEFAULT : threads > THREADS_MAX ? THREADS_MAX : threads, rc = 0;
    sigset_t all, before;
    pthread_mutex_init(&d->lock, NULL);
    pthread_cond_init(&d->work, NULL);
    pthread_cond_init(&d->done, NULL);
    sigfillset(&all); /* signals are the program's */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (; rc == 0 && d->n_threads < n; d->n_threads += rc == 0)
        rc = pthread_create(&d->thread[d->n_threads], NULL, work, d);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (rc != 0) {
        dn_decoders_free(d);
        return dn_fail(err, DN_E_MEMORY, NULL, "cannot start a thread: %s", strerror(rc));
    }
    *out = d;
    return 0;
}

void dn_decoders_free(dn_decoders *d)
{
    if (!d)
        return;
    pthread_mutex_lock(&d->lock);
    d->stop = true;
    pthread_cond_broadcast(&d->work);
    pthread_mutex_unlock(&d->lock);
    for (int i = 0; i < d->n_threads; i++)
        pthread_join(d->thread[i], NULL);
    for (; d->first < d->end; d->first++) {
        free(d->ring[d->first % RING].data);
        free(d->ring[d->first % RING].result.picture.pixels);
    }
    pthread_mutex_destroy(&d->lock);
    pthread_cond_destroy(&d->work);
    pthread_cond_destroy(&d->done);
    free(d);
}

bool dn_decoders_have_room(const dn_decoders *d, size_t cost)
{
    int64_t n = d->end - d->first; /* both are the submitter's */
    return n == 0 || (n < RING && d->flight + cost <= flight_max);
}

void dn_decoders_submit(dn_decoders *d, const char *name, uint8_t *data, size_t len, size_t cost)
{
    struct job *j = &d->ring[d->end % RING];
    *j = (struct job){ .data = data, .len = len, .cost = cost };
    snprintf(j->result.name, sizeof j->result.name, "%s", name);
    d->flight += cost;
    pthread_mutex_lock(&d->lock);
    d->end++;
    pthread_cond_signal(&d->work);
    pthread_mutex_unlock(&d->lock);
}

bool dn_decoders_pending(const dn_decoders *d) { return d->first < d->end; }

void dn_decoders_collect(dn_decoders *d, dn_decoded *out)
{
    struct job *j = &d->ring[d->first % RING];
    pthread_mutex_lock(&d->lock);
    while (!j->done)
        pthread_cond_wait(&d->done, &d->lock);
    pthread_mutex_unlock(&d->lock);
    *out = j->result;
    d->flight -= j->cost;
    d->first++;
}
