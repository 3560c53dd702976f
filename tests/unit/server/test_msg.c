/* Messages, mailboxes, lanes: order, nothing lost, nothing twice, under several threads. */
#include <lanes.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <cmocka.h>

enum { SENDERS = 4, EACH = 5000 };

typedef struct numbered {
    dn_msg msg;
    int sender, number;
    int *next_of; /* the number expected of each sender */
    int *total;
} numbered;

static void take_numbered(dn_msg *msg)
{
    numbered *n = dn_container_of(msg, numbered, msg);
    assert_int_equal(n->number, n->next_of[n->sender]);
    n->next_of[n->sender]++;
    ++*n->total;
    free(n);
}

typedef struct sender {
    dn_mailbox *box;
    dn_loop *loop;
    int id, *next_of, *total;
} sender;

static void *send_all(void *arg)
{
    sender *s = arg;
    for (int i = 0; i < EACH; i++) {
        numbered *n = malloc(sizeof *n);
        *n = (numbered){ { .run = take_numbered }, s->id, i, s->next_of, s->total };
        if (s->box)
            dn_mailbox_post(s->box, &n->msg);
        else
            dn_loop_post(s->loop, &n->msg);
        if (i % 1000 == 0)
            usleep(100);
    }
    return NULL;
}

static void run_senders(pthread_t threads[SENDERS], sender senders[SENDERS], dn_mailbox *box, dn_loop *loop,
                        int *next_of, int *total)
{
    for (int i = 0; i < SENDERS; i++) {
        senders[i] = (sender){ box, loop, i, next_of, total };
        assert_int_equal(pthread_create(&threads[i], NULL, send_all, &senders[i]), 0);
    }
}

static void test_mailbox_keeps_order_and_loses_nothing(void **state)
{
    (void)state;
    dn_mailbox box;
    dn_mailbox_init(&box);
    pthread_t threads[SENDERS];
    sender senders[SENDERS];
    int next_of[SENDERS] = { 0 }, total = 0;
    run_senders(threads, senders, &box, NULL, next_of, &total);
    while (total < SENDERS * EACH)
        assert_true(dn_mailbox_run(&box, 5000) > 0);
    for (int i = 0; i < SENDERS; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(dn_mailbox_run(&box, 0), 0);
    assert_int_equal(dn_mailbox_run(&box, 5), 0); /* stale wake-ups do not end the wait early or hang it */
    dn_mailbox_fini(&box);
}

typedef struct stopper {
    dn_msg msg;
    dn_loop *loop;
    int *total;
    uv_timer_t timer;
} stopper;

static void stop_when_done(uv_timer_t *timer)
{
    stopper *s = timer->data;
    if (*s->total == SENDERS * EACH)
        dn_loop_quit(s->loop);
}

static void test_loop_gets_all_messages(void **state)
{
    (void)state;
    dn_loop *loop;
    assert_int_equal(dn_loop_new(&loop, NULL), 0);
    pthread_t threads[SENDERS];
    sender senders[SENDERS];
    int next_of[SENDERS] = { 0 }, total = 0;
    stopper s = { .loop = loop, .total = &total };
    s.timer.data = &s;
    uv_timer_init(dn_loop_uv(loop), &s.timer);
    uv_timer_start(&s.timer, stop_when_done, 1, 1);
    run_senders(threads, senders, NULL, loop, next_of, &total);
    dn_loop_run(loop);
    for (int i = 0; i < SENDERS; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(total, SENDERS * EACH);
    uv_close((uv_handle_t *)&s.timer, NULL);
    dn_loop_settle(loop);
    dn_loop_free(loop);
}

/* A message may send another, also to the queue that is being run. */
typedef struct again {
    dn_msg msg;
    dn_queue *queue;
    int left;
} again;

static void send_again(dn_msg *msg)
{
    again *a = dn_container_of(msg, again, msg);
    if (a->left-- > 0)
        dn_queue_push(a->queue, msg);
}

static void test_message_sent_by_a_message(void **state)
{
    (void)state;
    dn_queue q = { NULL };
    again a = { .msg = { .run = send_again }, .queue = &q, .left = 3 };
    assert_int_equal(dn_queue_push(&q, &a.msg), 1);
    int runs = 0;
    while (dn_queue_run(&q))
        runs++;
    assert_int_equal(runs, 4);
}

typedef struct job {
    dn_work work;
    pthread_t worked_on, done_on;
    int order, niceness, *n_done, *n_worked;
} job;

static void do_job(dn_work *work)
{
    job *j = dn_container_of(work, job, work);
    j->worked_on = pthread_self();
    j->niceness = getpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid));
    j->order = __atomic_fetch_add(j->n_worked, 1, __ATOMIC_RELAXED);
}

static void job_done(dn_work *work)
{
    job *j = dn_container_of(work, job, work);
    j->done_on = pthread_self();
    ++*j->n_done;
}

static void test_lane_works_elsewhere_and_is_done_here(void **state)
{
    (void)state;
    enum { N = 200 };
    dn_loop *loop;
    dn_lane *lane;
    static job jobs[N];
    int n_done = 0, n_worked = 0, mine = getpriority(PRIO_PROCESS, 0);
    assert_int_equal(dn_loop_new(&loop, NULL), 0);
    assert_int_equal(dn_lane_new(&lane, loop, "test", 1, 3, NULL), 0);
    for (int i = 0; i < N; i++) {
        jobs[i] = (job){ .work = { .work = do_job, .done = job_done }, .n_done = &n_done, .n_worked = &n_worked };
        dn_lane_submit(lane, &jobs[i].work);
    }
    dn_lane_stop(lane); /* finishes them all */
    assert_int_equal(n_done, 0);
    assert_int_equal(dn_loop_messages(loop), N);
    assert_int_equal(n_done, N);
    for (int i = 0; i < N; i++) {
        assert_int_equal(jobs[i].order, i);
        assert_false(pthread_equal(jobs[i].worked_on, pthread_self()));
        assert_true(pthread_equal(jobs[i].done_on, pthread_self()));
        assert_int_equal(jobs[i].niceness, mine + 3 > 19 ? 19 : mine + 3);
    }
    dn_lane_submit(lane, &jobs[0].work); /* after the stop: at once, here */
    assert_true(pthread_equal(jobs[0].worked_on, pthread_self()));
    assert_int_equal(dn_loop_messages(loop), 1);
    dn_lane_free(lane);
    dn_loop_free(loop);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mailbox_keeps_order_and_loses_nothing),
        cmocka_unit_test(test_loop_gets_all_messages),
        cmocka_unit_test(test_message_sent_by_a_message),
        cmocka_unit_test(test_lane_works_elsewhere_and_is_done_here),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
