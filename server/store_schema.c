/* store_schema.c - the tables, as the migrations that make them.
 *
 * A path is relative to the state folder. Times are Unix seconds. JSON columns hold what proto/ reads and writes. */
#include "store.h"

/* clang-format off */
static const char version_1[] =
    /* Accepted asynchronous requests. `spec` is the request with every default resolved; `tries` counts the starts in a
     * row that did no step, `starts` all; `state` is queued until it has ended; what is NULL is not known yet. */
    "CREATE TABLE requests ("
    "  seq INTEGER PRIMARY KEY AUTOINCREMENT,"
    "  id TEXT NOT NULL UNIQUE,"
    "  owner TEXT NOT NULL,"
    "  state TEXT NOT NULL,"
    "  spec TEXT NOT NULL,"
    "  model TEXT,"
    "  numerics TEXT,"
    "  numerics_before TEXT,"            /* what it was accepted for, when that is another */
    "  starts INTEGER NOT NULL DEFAULT 0,"
    "  tries INTEGER NOT NULL DEFAULT 0,"
    "  created REAL NOT NULL,"
    "  finished REAL,"
    "  ended TEXT,"                      /* JSON: timing, error, results, events */
    "  file TEXT,"                       /* the results, one after the other */
    "  bytes INTEGER NOT NULL DEFAULT 0" /* of the file */
    ") STRICT;"
    "CREATE INDEX requests_unfinished ON requests(seq) WHERE finished IS NULL;"
    /* What is no longer kept answers 410, not 404. */
    "CREATE TABLE gone (seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL) STRICT;"
    /* Idempotency-Key. `body` NULL: the answer was too large, or is no longer kept. */
    "CREATE TABLE answers ("
    "  seq INTEGER PRIMARY KEY AUTOINCREMENT,"
    "  owner TEXT NOT NULL,"
    "  method TEXT NOT NULL,"
    "  path TEXT NOT NULL,"
    "  key TEXT NOT NULL,"
    "  asked TEXT NOT NULL,"             /* sha256 of the request's body */
    "  created REAL NOT NULL,"
    "  status INTEGER NOT NULL,"
    "  headers TEXT NOT NULL,"           /* JSON object */
    "  type TEXT,"
    "  body BLOB,"
    "  UNIQUE (owner, method, path, key)"
    ") STRICT;"
    "CREATE INDEX answers_created ON answers(created);"
    "CREATE TABLE datasets ("
    "  seq INTEGER PRIMARY KEY AUTOINCREMENT,"
    "  name TEXT NOT NULL,"
    "  hash TEXT NOT NULL,"
    "  owner TEXT NOT NULL,"
    "  created REAL NOT NULL,"
    "  bytes INTEGER NOT NULL,"
    "  info TEXT NOT NULL,"              /* JSON: images, size, channels, classes, what was left out */
    "  path TEXT NOT NULL,"
    "  UNIQUE (name, hash)"
    ") STRICT;"
    "CREATE TABLE jobs ("
    "  seq INTEGER PRIMARY KEY AUTOINCREMENT,"
    "  id TEXT NOT NULL UNIQUE,"
    "  owner TEXT NOT NULL,"
    "  name TEXT NOT NULL,"
    "  state TEXT NOT NULL,"
    "  reason TEXT,"                     /* why it is paused or has failed */
    "  spec TEXT NOT NULL,"              /* JSON, as submitted, every default resolved */
    "  plan TEXT,"                       /* JSON: what `auto` was resolved to, numerics, memory plan */
    "  dataset INTEGER REFERENCES datasets(seq),"
    "  attempt INTEGER NOT NULL DEFAULT 0,"
    "  step INTEGER NOT NULL DEFAULT 0," /* of the newest checkpoint */
    "  starts INTEGER NOT NULL DEFAULT 0," /* in a row without progress */
    "  priority TEXT NOT NULL DEFAULT 'normal',"
    "  train_share REAL NOT NULL,"
    "  path TEXT NOT NULL,"              /* folder of its checkpoints, metrics and previews */
    "  created REAL NOT NULL,"
    "  started REAL,"
    "  finished REAL"
    ") STRICT;"
    "CREATE INDEX jobs_unfinished ON jobs(seq) WHERE finished IS NULL;"
    "CREATE INDEX jobs_dataset ON jobs(dataset);"
    "CREATE TABLE versions ("
    "  model TEXT NOT NULL,"
    "  version INTEGER NOT NULL,"
    "  owner TEXT NOT NULL,"
    "  path TEXT,"                       /* NULL: the folder in --models, version 1 */
    "  hash TEXT,"
    "  bytes INTEGER NOT NULL DEFAULT 0,"
    "  live INTEGER NOT NULL DEFAULT 0,"
    "  source TEXT,"                     /* upload, save, job:<id> */
    "  created REAL NOT NULL,"
    "  PRIMARY KEY (model, version)"
    ") STRICT;"
    "CREATE UNIQUE INDEX versions_live ON versions(model) WHERE live;";

static const char version_2[] =
    "ALTER TABLE jobs ADD COLUMN published TEXT;" /* model@version that last came of it */
    "ALTER TABLE jobs ADD COLUMN figures TEXT;"   /* JSON: the last loss, lr, ... */
    "CREATE TABLE job_saved ("
    "  job TEXT NOT NULL REFERENCES jobs(id),"
    "  step INTEGER NOT NULL,"
    "  bytes INTEGER NOT NULL,"
    "  created REAL NOT NULL,"
    "  eval REAL,"                                /* held-out loss */
    "  PRIMARY KEY (job, step)"
    ") STRICT;"
    "CREATE TABLE job_shown ("
    "  job TEXT NOT NULL REFERENCES jobs(id),"
    "  step INTEGER NOT NULL,"
    "  seed INTEGER NOT NULL,"
    "  label INTEGER NOT NULL,"                   /* -1: the null label */
    "  sha256 TEXT NOT NULL,"
    "  PRIMARY KEY (job, step, seed, label)"
    ") STRICT;";

static const char version_3[] =
    /* The highest version that a model of the name ever had: a number is never given twice. */
    "CREATE TABLE model_numbers (model TEXT PRIMARY KEY, highest INTEGER NOT NULL) STRICT;"
    "INSERT INTO model_numbers SELECT model, max(version) FROM versions GROUP BY model;";

static const char version_4[] =
    "ALTER TABLE job_shown ADD COLUMN told TEXT;"; /* the id of its event; NULL: it was told before that was kept */
/* clang-format on */

const char *const dn_store_migrations[] = { version_1, version_2, version_3, version_4 };
const int dn_store_n_migrations = sizeof dn_store_migrations / sizeof dn_store_migrations[0];
