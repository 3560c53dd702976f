/* commands.c - the table of commands. */
#include "cli.h"
#include "job.h"

/* clang-format off */
static const char push_text[] =
    "PATH is a folder (sent as a tar that is made on the way, without what is hidden; links and devices in it are refused), or one file as it "
    "is, or several files, or - for standard input. What comes half is not kept.";
static const char publish_text[] =
    "The moving average of the weights becomes the next version of the model NAME, and its live one; the job goes on.";

const dn_command dn_commands[] = {
    { "generate", NULL, DN_GENERATE_C, NULL, &dn_generate_fields, "Make pictures.",
      "The request is made of flags (or of --json) and followed to its end: a bar on a terminal shows steps, time left and how many rows of "
      "how many requests share the batches. The seed is printed, so that a result can be had again. Ctrl-C cancels the request on the daemon.\n"
      "\n"
      "  denoise generate -m fashion-mnist --label sandal -n 16 --grid -o sandals.png\n"
      "  denoise generate --label bag --seed 7 --steps 20 --sampler dpm++2m --guidance 3 -o bag.png\n"
      "  denoise generate -n 4 --label 1,2,3,4 -o shoe-%02d.png\n"
      "  denoise generate -n 64 --format npy -o - > batch.npy", dn_run_generate },
    { "wait", "ID", DN_WAIT_C, NULL, NULL, "Follow a request of `generate --async` and fetch its result.",
      "Ctrl-C leaves it running.", dn_run_wait },
    { "requests", NULL, DN_LIST_C, &dn_requests_query_fields, NULL, "Your requests, newest first.", NULL, dn_run_requests },
    { "cancel", "ID", DN_CHANGE_C, NULL, NULL, "Cancel a request within one step.",
      "The exit status is 3 when it had ended before.", dn_run_cancel },
    { "status", NULL, DN_STATUS_C, NULL, NULL, "Devices, the rows of the last step and who shares them, models, queue, memory.", NULL, dn_run_status },

    { "train", "[JOB.json]", DN_TRAIN_C, &dn_dataset_query_fields, &dn_job_fields, "Submit a training job.",
      "The job is made of flags laid over JOB.json (- is standard input), if there is one. A --dataset with a slash (./shoes, /data/shoes.tar) is sent "
      "first, as `datasets push` does; without one it names a dataset of the daemon. The job's id is printed, and how much memory it will take. With "
      "--follow the exit status tells how it ended: 0 succeeded, 3 cancelled, 5 failed; with -o it saves previews as they come, and at the end "
      "has all of them.\n"
      "\n"
      "  denoise train --name shoes --dataset ./shoes --from fashion-mnist --steps 2000 --batch-size 64 --follow\n"
      "  denoise train job.json --optimizer-lr 5e-5 --preview-every-steps 200 --preview-labels all --follow -o previews\n"
      "  denoise models config fashion-mnist > job.json", dn_run_train },
    { "jobs", NULL, DN_LIST_C, &dn_jobs_query_fields, NULL, "Your training jobs, newest first.", NULL, dn_run_jobs },
    { "jobs show", "ID", DN_LIST_C, NULL, NULL, "Everything about a job.", NULL, dn_run_job },
    { "jobs follow", "ID", DN_FOLLOW_C, NULL, NULL, "Loss, evaluations and previews of a job, to its end.",
      "Ctrl-C leaves it running. A connection that breaks is made again, from where it broke. With -o every preview is saved, those from before "
      "too. The exit status tells how the job ended: 0 succeeded, 3 cancelled, 5 failed.", dn_run_job_follow },
    { "jobs pause", "ID", DN_CHANGE_C, NULL, NULL, "End the optimizer step, save, free the device.", NULL, dn_run_job_pause },
    { "jobs resume", "ID", DN_CHANGE_C, NULL, NULL, "Go on with a paused job.", NULL, dn_run_job_resume },
    { "jobs cancel", "ID", DN_CHANGE_C, NULL, NULL, "End it for good.", NULL, dn_run_job_cancel },
    { "jobs save", "ID", DN_CHANGE_C, NULL, NULL, "Write a checkpoint now.", NULL, dn_run_job_save },
    { "jobs checkpoints", "ID", DN_LIST_C, NULL, NULL, "Its saved states, newest first.", NULL, dn_run_job_checkpoints },
    { "jobs samples", "ID", DN_SAMPLES_C, NULL, NULL, "Its previews, newest first; with -o all of them as files.",
      "Files are called STEP-SEED-NUMBER-LABEL.png, in the order of training, the null label's STEP-SEED-none.png; those of these names that are "
      "there already are replaced.", dn_run_job_samples },
    { "jobs set", "ID", DN_CHANGE_C, NULL, &dn_job_patch_fields, "Change a job while it runs.", NULL, dn_run_job_set },
    { "jobs publish", "ID NAME", DN_CHANGE_C, NULL, NULL, "Make a model of what it has learned.", publish_text, dn_run_job_publish },
    { "jobs metrics", "ID", DN_FETCH_C, NULL, NULL, "A CSV line for each step and evaluation.", NULL, dn_run_job_metrics },

    { "datasets", NULL, DN_LIST_C, NULL, NULL, "Your datasets, newest first.", NULL, dn_run_datasets },
    { "datasets show", "NAME", DN_LIST_C, NULL, NULL, "Everything about a dataset: NAME (the newest of it) or NAME@HASH.", NULL, dn_run_dataset },
    { "datasets push", "NAME PATH...", DN_PUSH_C, &dn_dataset_query_fields, NULL,
      "Send pictures in class folders or with a labels file, IDX, npy or safetensors files.", push_text, dn_run_dataset_push },
    { "datasets delete", "NAME", DN_CHANGE_C, NULL, NULL, "Delete a dataset that no job needs: NAME or NAME@HASH.", NULL, dn_run_dataset_delete },

    { "models", "[NAME]", DN_LIST_C, NULL, NULL, "List the models, or say everything about one.", NULL, dn_run_models },
    { "load", "NAME", DN_CHANGE_C, &dn_load_query_fields, NULL, "Load a model.", NULL, dn_run_load },
    { "unload", "NAME", DN_CHANGE_C, &dn_unload_query_fields, NULL, "Let a model's requests finish, then unload it.", NULL, dn_run_unload },
    { "models push", "NAME PATH...", DN_PUSH_C, NULL, NULL, "Add a version: a folder as diffusers writes it, or an archive of one.", push_text,
      dn_run_model_push },
    { "models pull", "NAME", DN_FETCH_C, NULL, NULL, "A version (NAME or NAME@VERSION) as tar.zst.", NULL, dn_run_model_pull },
    { "models config", "NAME", DN_LIST_C, NULL, NULL, "A JOB.json for `train` of another network like it: config, schedule, prediction.", NULL,
      dn_run_model_config },
    { "models publish", "ID NAME", DN_CHANGE_C, NULL, NULL, "The same as `jobs publish`.", publish_text, dn_run_job_publish },
    { "models alias", "NAME@VERSION", DN_CHANGE_C, NULL, NULL, "Make a version the live one, which the bare NAME means.", NULL, dn_run_model_alias },
    { "models save", "NAME NEW", DN_CHANGE_C, NULL, NULL, "Keep a copy of a version (NAME or NAME@VERSION) as a version of NEW.", NULL,
      dn_run_model_save },
    { "models delete", "NAME@VERSION", DN_CHANGE_C, NULL, NULL, "Delete a version that is not live.", NULL, dn_run_model_delete },
    { NULL }
};
/* clang-format on */
