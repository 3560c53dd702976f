/* caps.c - the CPUs and memory that a process may use. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <denoised/caps.h>
#include <denoised/device.h>
#include <sched.h>
#include <string.h>
#include <unistd.h>

static void test_affinity(void **state)
{
    (void)state;
    int before[DN_CPUS_MAX], after[DN_CPUS_MAX], n = dn_caps_affinity(before, DN_CPUS_MAX);
    cpu_set_t all, one;
    assert_true(n >= 1);
    sched_getaffinity(0, sizeof all, &all);
    CPU_ZERO(&one);
    CPU_SET(before[n - 1], &one);
    assert_int_equal(sched_setaffinity(0, sizeof one, &one), 0);
    assert_int_equal(dn_caps_affinity(after, DN_CPUS_MAX), 1);
    assert_int_equal(after[0], before[n - 1]);
    assert_int_equal(dn_caps_cpus(after, DN_CPUS_MAX), 1);
    dn_device *d = NULL;
    assert_int_equal(dn_device_open(&d, "cpu", NULL), 0);
    assert_int_equal(dn_device_threads(d), 1);
    dn_device_close(d);
    sched_setaffinity(0, sizeof all, &all);
    assert_int_equal(dn_caps_affinity(after, DN_CPUS_MAX), n);
}

static void test_memory(void **state)
{
    (void)state;
    int64_t machine = (int64_t)sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE);
    assert_true(dn_caps_memory() > 0 && dn_caps_memory() <= machine);
}

static void test_device_names(void **state)
{
    (void)state;
    static const char *const bad[] = { "",       "gpu",     "cuda:0",  "cpu:",    "cpu:-1",   "cpu:0-",    "cpu:1-0", "cpu:0,",
                                       "cpu:x", "cpu:9999", "cpu:0 1", "ref:zzz", "cpu:0,,1", "cpu:0-9999" };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        dn_device *d = NULL;
        dn_error err = { 0 };
        if (!dn_device_open(&d, bad[i], &err))
            fail_msg("\"%s\" opened", bad[i]);
        assert_null(d);
        assert_string_equal(err.param, "devices");
        assert_true(strlen(err.message) > 0);
    }
    dn_device *d = NULL;
    assert_int_equal(dn_device_open(&d, "ref", NULL), 0);
    assert_string_equal(dn_device_backend(d), "ref");
    assert_string_equal(dn_device_name(d), "ref");
    dn_device_close(d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_affinity),
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_device_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
