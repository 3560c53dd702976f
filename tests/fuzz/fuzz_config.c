/* fuzz_config.c - any bytes as the JSON of a config: what is accepted can be written and read back. */
#include "json.h"

#include <jansson.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    json_t *root = NULL, *again = NULL;
    dn_error err = { 0 };
    if (dn_json_text(&root, (const char *)data, size, "config.json", &err) != 0) {
        if (root || strncmp(err.message, "config.json, line ", 18) != 0)
            abort();
        return 0;
    }
    char *text = json_dumps(root, JSON_REAL_PRECISION(17));
    if (!json_is_object(root) || !text || dn_json_text(&again, text, strlen(text), "again", NULL) != 0 ||
        !json_equal(root, again))
        abort();
    free(text);
    json_decref(root);
    json_decref(again);
    return 0;
}
