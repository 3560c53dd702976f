/* Small things: base64, file names, numbers for people, tokens, what reaches the terminal. */
#include "base64.h"
#include "cli.h"
#include "columns.h"
#include "output.h"
#include "token.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#define LENGTH(a) (sizeof(a) / sizeof *(a))

/* RFC 4648, section 10 */
static void base64_vectors(void **state)
{
    (void)state;
    /* clang-format off */
    static const char *const vectors[][2] = { { "", "" },         { "Zg==", "f" },       { "Zm8=", "fo" },        { "Zm9v", "foo" },
                                              { "Zm9vYg==", "foob" }, { "Zm9vYmE=", "fooba" }, { "Zm9vYmFy", "foobar" } };
    /* clang-format on */
    for (size_t i = 0; i < LENGTH(vectors); i++) {
        size_t n;
        unsigned char *out = dn_base64_decode(&n, vectors[i][0], strlen(vectors[i][0]));
        assert_non_null(out);
        assert_int_equal(n, strlen(vectors[i][1]));
        assert_memory_equal(out, vectors[i][1], n);
        free(out);
    }
}

static void base64_refusals(void **state)
{
    (void)state;
    /* clang-format off */
    static const char *const bad[] = { "Z", "Zg", "Zg=", "Zg===", "=", "==", "====", "Zm=v", "Z=8=", "Zg==Zg==", "Zm9v\n", "Zm 9v",
                                       "Zm-_", "Zm9vY===", "Zh==", "Zm9=", "Zm\xc3\xa4" };
    /* clang-format on */
    for (size_t i = 0; i < LENGTH(bad); i++) {
        size_t n;
        assert_null(dn_base64_decode(&n, bad[i], strlen(bad[i])));
    }
}

static void base64_round_trip(void **state)
{
    (void)state;
    unsigned char bytes[300];
    for (int i = 0; i < 300; i++)
        bytes[i] = (unsigned char)(i * 151 + i / 7);
    for (size_t len = 0; len <= sizeof bytes; len++) {
        dn_buf b;
        size_t n;
        dn_buf_init(&b, 1000);
        dn_buf_base64(&b, bytes, len);
        unsigned char *out = dn_base64_decode(&n, b.data, b.len);
        assert_non_null(out);
        assert_int_equal(n, len);
        assert_memory_equal(out, bytes, len);
        free(out);
        dn_buf_fini(&b);
    }
}

static void file_names(void **state)
{
    (void)state;
    /* clang-format off */
    static const struct {
        const char *pattern;
        int k;
        bool several;
        const char *path;
    } cases[] = {
        { "a.png", 0, false, "a.png" },        { "a.png", 0, true, "a-0.png" },     { "a.png", 3, false, "a-3.png" },
        { "a-%d.png", 0, false, "a-0.png" },   { "a-%d.png", 12, true, "a-12.png" }, { "%03d.png", 7, true, "007.png" },
        { "100%%.png", 0, false, "100%.png" }, { "%d%%", 1, true, "1%" },           { "d.ir/a", 2, true, "d.ir/a-2" },
        { "d/.png", 2, true, "d/.png-2" },     { "a.b.c", 1, true, "a.b-1.c" },     { "a", 5, true, "a-5" },
        { "%%d.png", 1, true, "%d-1.png" },
    };
    /* clang-format on */
    for (size_t i = 0; i < LENGTH(cases); i++) {
        char path[DN_PATH_MAX];
        assert_int_equal(dn_output_path(path, cases[i].pattern, cases[i].k, cases[i].several), 0);
        assert_string_equal(path, cases[i].path);
    }
    char path[DN_PATH_MAX], too_long[DN_PATH_MAX + 1];
    memset(too_long, 'a', sizeof too_long);
    too_long[DN_PATH_MAX] = 0;
    assert_int_equal(dn_output_path(path, too_long, 0, false), -1);
}

static void numbers_for_people(void **state)
{
    (void)state;
    /* clang-format off */
    static const struct {
        double v;
        const char *text;
    } times[] = { { 0, "0.00 s" },        { -1, "0.00 s" },        { 1.234, "1.23 s" },      { 12.34, "12.3 s" },
                  { 125, "2 min 5 s" },   { 7322, "2 h 2 min" },   { 1e300, "years" },       { 0.0 / 0.0, "0.00 s" } },
      sizes[] = { { 0, "0 B" },           { 999, "999 B" },        { 1000, "1.0 kB" },       { 6.34e6, "6.3 MB" },
                  { 46865984, "47 MB" },  { 2e10, "20 GB" },       { 999.6e3, "1.0 MB" } };
    /* clang-format on */
    char out[24];
    for (size_t i = 0; i < LENGTH(times); i++)
        assert_string_equal(dn_text_time(out, times[i].v), times[i].text);
    for (size_t i = 0; i < LENGTH(sizes); i++)
        assert_string_equal(dn_text_bytes(out, sizes[i].v), sizes[i].text);
}

static char *printed(void (*put)(FILE *out))
{
    static char *text;
    size_t n;
    FILE *f = open_memstream(&text, &n);
    put(f);
    fclose(f);
    return text;
}

static void put_hostile(FILE *out)
{
    dn_text_put(out, "a\033[2Jb\ac\x7f"
                     "d\xc2\x9b"
                     "e\r\t\n\xc3\xa4");
}

static void nothing_controls_the_terminal(void **state)
{
    (void)state;
#define R "\xef\xbf\xbd"
    char *text = printed(put_hostile);
    assert_string_equal(text, "a" R "[2Jb" R "c" R "d" R "e" R R "\n\xc3\xa4");
    free(text);
}

static void put_columns(FILE *out)
{
    dn_columns t;
    char wide[200];
    memset(wide, 'w', sizeof wide);
    memcpy(wide + DN_CELL_MAX - 2, "\xc3\xa4", 3); /* does not fit: cut before it, not in it */
    dn_columns_init(&t, (const char *const[]){ "A", "BB", NULL });
    dn_columns_add(&t, (const char *const[]){ "\xc3\xa4\xc3\xa4\xc3\xa4", "x" });
    for (int i = 0; i < 20; i++)
        dn_columns_add(&t, (const char *const[]){ "", "\033" });
    dn_columns_add(&t, (const char *const[]){ "", wide });
    dn_columns_print(&t, 1, out);
    dn_columns_fini(&t);
}

static void columns_line_up(void **state)
{
    (void)state;
    char *text = printed(put_columns);
    static const char head[] = " A    BB\n \xc3\xa4\xc3\xa4\xc3\xa4  x\n      " R "\n";
    assert_int_equal(strncmp(text, head, sizeof head - 1), 0);
    const char *last = strchr(text, 'w');
    assert_int_equal(strspn(last, "w"), DN_CELL_MAX - 2);
    assert_string_equal(last + DN_CELL_MAX - 2, "\n");
    free(text);
}

static int from_file(char out[DN_TOKEN_MAX + 1], const char *content)
{
    char path[] = "/tmp/denoise-token-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0 && write(fd, content, strlen(content)) == (ssize_t)strlen(content));
    close(fd);
    int rc = dn_token_find(out, NULL, path, "of-the-environment");
    unlink(path);
    return rc;
}

static void tokens(void **state)
{
    (void)state;
    char out[DN_TOKEN_MAX + 1], long_comment[2000], too_long[DN_TOKEN_MAX + 2];
    assert_int_equal(dn_token_find(out, NULL, NULL, NULL), 0);
    assert_string_equal(out, "");
    assert_int_equal(dn_token_find(out, NULL, NULL, "env"), 0);
    assert_string_equal(out, "env");
    assert_int_equal(dn_token_find(out, "flag", NULL, "env"), 0);
    assert_string_equal(out, "flag");
    assert_int_equal(from_file(out, "# mine\n\n  secret  name use,admin\nother\n"), 0);
    assert_string_equal(out, "secret");
    memset(long_comment, 'c', sizeof long_comment);
    long_comment[0] = '#';
    strcpy(long_comment + 1990, "\nword");
    assert_int_equal(from_file(out, long_comment), 0);
    assert_string_equal(out, "word");
    assert_int_equal(from_file(out, "# nothing\n"), DN_EXIT_USAGE);
    assert_int_equal(dn_token_find(out, NULL, "/nonexistent/token", NULL), DN_EXIT_USAGE);
    assert_int_equal(dn_token_find(out, "a\r\nX-Evil: 1", NULL, NULL), DN_EXIT_USAGE);
    memset(too_long, 't', sizeof too_long);
    too_long[DN_TOKEN_MAX + 1] = 0;
    assert_int_equal(dn_token_find(out, too_long, NULL, NULL), DN_EXIT_USAGE);
    assert_int_equal(from_file(out, too_long), DN_EXIT_USAGE);
    assert_int_equal(dn_token_find(out, too_long + 1, NULL, NULL), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(base64_vectors),     cmocka_unit_test(base64_refusals),
        cmocka_unit_test(base64_round_trip),  cmocka_unit_test(file_names),
        cmocka_unit_test(numbers_for_people), cmocka_unit_test(nothing_controls_the_terminal),
        cmocka_unit_test(columns_line_up),    cmocka_unit_test(tokens),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
