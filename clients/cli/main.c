/* main.c - `denoise`: reads the command line and runs the command. */
#include "cli.h"

#include <errno.h>
#include <locale.h>
#include <signal.h>
#include <string.h>

#ifndef DN_VERSION
#error "the build gives DN_VERSION"
#endif

static int run(dn_args *args)
{
    if (args->value[DN_OPT_VERSION])
        puts("denoise " DN_VERSION);
    else if (args->value[DN_OPT_HELP])
        dn_help_print(args->command, stdout);
    else
        return args->command->run(args);
    return DN_EXIT_OK;
}

int main(int argc, char **argv)
{
    dn_args args;
    setlocale(LC_CTYPE, "");
    signal(SIGPIPE, SIG_IGN);
    int rc = dn_args_read(&args, argc, argv);
    if (!rc)
        rc = run(&args);
    dn_args_fini(&args);
    if ((fflush(stdout) || ferror(stdout)) && !rc) {
        dn_complain("standard output: %s", strerror(errno));
        rc = DN_EXIT_FAILED;
    }
    return rc;
}
