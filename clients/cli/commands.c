/* commands.c - the table of commands. */
#include "cli.h"

/* clang-format off */
const dn_command dn_commands[] = {
    { "generate", NULL, DN_GENERATE_C, NULL, "Make pictures.",
      "The request is made of flags (or of --json) and followed to its end: a bar on a terminal shows steps, time left and how many rows of "
      "how many requests share the batches. The seed is printed, so that a result can be had again. Ctrl-C cancels the request on the daemon.\n"
      "\n"
      "  denoise generate -m fashion-mnist --label sandal -n 16 --grid -o sandals.png\n"
      "  denoise generate --label bag --seed 7 --steps 20 --sampler dpm++2m --guidance 3 -o bag.png\n"
      "  denoise generate -n 4 --label 1,2,3,4 -o shoe-%02d.png\n"
      "  denoise generate -n 64 --format npy -o - > batch.npy", dn_run_generate },
    { "wait", "ID", DN_WAIT_C, NULL, "Follow a request of `generate --async` and fetch its result.",
      "Ctrl-C leaves it running.", dn_run_wait },
    { "models", "[NAME]", DN_MODELS_C, NULL, "List the models, or say everything about one.", NULL, dn_run_models },
    { "load", "NAME", DN_CHANGES_C, &dn_load_query_fields, "Load a model.", NULL, dn_run_load },
    { "unload", "NAME", DN_CHANGES_C, &dn_unload_query_fields, "Let a model's requests finish, then unload it.", NULL, dn_run_unload },
    { "status", NULL, DN_STATUS_C, NULL, "Devices, the rows of the last step and who shares them, models, queue, memory.", NULL, dn_run_status },
    { "requests", NULL, DN_REQUESTS_C, &dn_requests_query_fields, "Your requests, newest first.", NULL, dn_run_requests },
    { "cancel", "ID", DN_CHANGES_C, NULL, "Cancel a request within one step.",
      "The exit status is 3 when it had ended before.", dn_run_cancel },
    { NULL }
};
/* clang-format on */
