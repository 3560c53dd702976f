/* nosync.c - fsync that does nothing, for tests that make hundreds of small datasets (--wrap=fsync); that it is called,
 * and what happens when it fails, is test_faults.c's. */
int __wrap_fsync(int fd);
int __wrap_fsync(int fd) { return (void)fd, 0; }
