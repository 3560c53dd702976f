/* fuzz_main.c - replays files through a fuzz target that is built as a plain program.
 *
 * Each argument is a file or a folder of files. Every input is given as a block of exactly its size, so that a
 * sanitizer sees a read past its end. No input at all is a failure. */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Returns the number of inputs. */
static int replay_file(const char *path)
{
    FILE *f = fopen(path, "rb");
    if (!f || fseek(f, 0, SEEK_END) != 0)
        exit((perror(path), 1));
    size_t size = (size_t)ftell(f);
    uint8_t *data = malloc(size);
    rewind(f);
    if ((size > 0 && !data) || fread(data, 1, size, f) != size)
        exit((perror(path), 1));
    fclose(f);
    LLVMFuzzerTestOneInput(data, size);
    free(data);
    return 1;
}

static int replay(const char *path)
{
    DIR *dir = opendir(path);
    if (!dir)
        return replay_file(path);
    int n = 0;
    for (struct dirent *entry; (entry = readdir(dir));) {
        char name[4096];
        snprintf(name, sizeof name, "%s/%s", path, entry->d_name);
        if (entry->d_name[0] != '.')
            n += replay(name);
    }
    closedir(dir);
    return n;
}

int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        int n = replay(argv[i]);
        printf("%s: %d inputs\n", argv[i], n);
        if (n == 0)
            return 1;
    }
    return argc < 2;
}
